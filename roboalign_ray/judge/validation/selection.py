"""What a judge's preference among the samples of one prompt is worth: GRPO compares nothing else."""

from __future__ import annotations

import numpy as np

from roboalign_ray.judge.validation.agreement import spearman

_LEAST_RANKED = 3  # samples of a prompt, below which a rank correlation says nothing


def picked(points: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """What a judge's best-liked sample of every prompt is worth by another's points.

    Args:
        points: float64 [E, S, ...].
        liked: float64 [E, S], more is better; NaN where the judge gave no score, which is never picked.

    Returns:
        float64 [E, ...]; of equals the first, and NaN where the judge scored no sample.
    """
    best = np.where(np.isfinite(liked), liked, -np.inf).argmax(axis=1)
    found = points[np.arange(len(points)), best].astype(np.float64)
    found[~np.isfinite(liked).any(axis=1)] = np.nan
    return found


def mean_known(values: np.ndarray) -> np.ndarray:
    """Means over every prompt's samples that have a score, float64 [E, ...] of [E, S, ...]; NaN where none has."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def rank_within(points: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """Spearman correlation over every prompt's samples, float64 [E]; both arrays are float64 [E, S].

    NaN where fewer than three samples have both, or one of the two tells none from another.
    """
    return np.array([_rank(a, b) for a, b in zip(points, liked, strict=True)])


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    return spearman(a[known], b[known]) if known.sum() >= _LEAST_RANKED else float("nan")
