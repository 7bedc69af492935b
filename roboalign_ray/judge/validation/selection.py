"""The quality of a judge's ranking of the samples of one prompt, since GRPO compares only these."""

from __future__ import annotations

import numpy as np

from roboalign_ray.judge.validation.agreement import spearman

_LEAST_RANKED = 3  # with fewer samples per prompt, a rank correlation is meaningless


def picked(points: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """The points, by another judge, of the sample that a judge prefers for each prompt.

    Args:
        points: float64 [E, S, ...].
        liked: float64 [E, S], the judge's scores, higher is better; a sample with NaN (no score) is never picked.

    Returns:
        float64 [E, ...]; the first sample in a tie, NaN if the judge scored no sample.
    """
    best = np.where(np.isfinite(liked), liked, -np.inf).argmax(axis=1)
    found = points[np.arange(len(points)), best].astype(np.float64)
    found[~np.isfinite(liked).any(axis=1)] = np.nan
    return found


def mean_known(values: np.ndarray) -> np.ndarray:
    """Means over the samples with a score, float64 [E, ...] of [E, S, ...]; NaN if a prompt has none."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def rank_within(points: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """Spearman correlation over the samples of each prompt, float64 [E]; both arrays are float64 [E, S].

    NaN if fewer than three samples have both scores, or if one of the two is constant.
    """
    return np.array([_rank(a, b) for a, b in zip(points, liked, strict=True)])


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    return spearman(a[known], b[known]) if known.sum() >= _LEAST_RANKED else float("nan")
