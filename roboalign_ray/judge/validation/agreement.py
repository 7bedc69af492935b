"""Agreement of two judges, per dimension and in total: rank correlation, absolute error, and pairwise accuracy.

Intervals are percentile bootstrap intervals that resample groups, since videos made from one episode are not
independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from roboalign_ray.judge.rubric import maxima, names

TOTAL = "total"
_LEAST_RESAMPLES = 0.5  # an interval is given if its statistic is defined on at least this share of resamples
_PAIRS_AT_ONCE = 2048  # rows of the pair matrix held at once


@dataclass(frozen=True)
class Figure:
    """A statistic with its 95 % interval; NaN if undefined (a constant judge has no rank correlation)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class AgreementRow:
    """One dimension's agreement.

    Attributes:
        dimension: its name, or "total".
        spearman: rank correlation.
        mae: mean absolute error, in points.
        pairwise: share of pairs of videos with different labels that the judge orders correctly; ties count half.
    """

    dimension: str
    spearman: Figure
    mae: Figure
    pairwise: Figure


@dataclass(frozen=True)
class Agreement:
    """A judge compared with labels.

    Attributes:
        judge: its name.
        rows: the six dimensions, then the total.
        videos: videos judged.
        failed: videos without a score from the judge; no row includes them.
    """

    judge: str
    rows: tuple[AgreementRow, ...]
    videos: int
    failed: int

    def as_json(self) -> dict[str, Any]:
        """JSON types only; undefined statistics are null."""
        return without_nan(asdict(self))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [N]; equal values get the mean of their ranks."""
    values = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two [N] arrays, ties averaged; NaN if one of them is constant."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def mean_absolute_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of |a - b|."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


def pairwise_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of pairs with different labels that the scores order in the same way; a tie counts half. NaN: no pair."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    right, pairs = 0.0, 0
    for first in range(0, len(labels), _PAIRS_AT_ONCE):
        part = slice(first, first + _PAIRS_AT_ONCE)
        truth = np.sign(labels[part, None] - labels[None])
        given = np.sign(scores[part, None] - scores[None])
        different = truth != 0
        right += (different * (1 + truth * given) / 2).sum()
        pairs += int(different.sum())
    return float(right / pairs) if pairs else float("nan")


def agreement(
    judge: str,
    scores: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Agreement:
    """Compare a judge with labels.

    Args:
        judge: its name, for tables.
        scores: float [N, 6], rubric points; a row with NaN is a failure and left out, never counted as 0.
        labels: float [N, 6], rubric points.
        groups: N group ids; None makes every video its own group.
        resamples: bootstrap resamples; 0 gives no intervals.

    Raises:
        ValueError: shapes differ.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.shape != labels.shape or scores.ndim != 2 or scores.shape[1] != len(names()):
        raise ValueError(f"scores are {scores.shape}, labels {labels.shape}, not [N, {len(names())}] both")
    given = np.isfinite(scores).all(axis=1)
    scores, labels = scores[given], labels[given]
    kept = np.asarray(groups)[given] if groups is not None else np.arange(len(scores))
    draws = _draws(kept, resamples, np.random.default_rng(seed))
    columns = [*zip(names(), scores.T, labels.T, strict=True), (TOTAL, scores.sum(1), labels.sum(1))]
    rows = tuple(
        AgreementRow(
            name, *(_figure(f, a, b, draws) for f in (spearman, mean_absolute_error, pairwise_accuracy))
        )
        for name, a, b in columns
    )
    return Agreement(judge, rows, len(given), int((~given).sum()))


def agreement_table(judges: Sequence[Agreement]) -> str:
    """A Markdown table with one row per judge and dimension."""
    lines = ["| judge | dimension | Spearman | MAE, points | pairwise | of |", "|---|---|---|---|---|---|"]
    most = dict(zip(names(), maxima(), strict=True))
    for judge in judges:
        for row in judge.rows:
            figures = " | ".join(str(figure) for figure in (row.spearman, row.mae, row.pairwise))
            top = most.get(row.dimension, maxima().sum())
            lines.append(f"| {judge.judge} | {row.dimension} | {figures} | {top:g} |")
    return "\n".join(lines) + "\n"


def _draws(groups: np.ndarray, resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Positions of resampled videos: whole groups, drawn with replacement."""
    if not len(groups):
        return []
    _, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return [
        np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        for _ in range(resamples)
    ]


def _figure(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    draws: list[np.ndarray],
) -> Figure:
    nan = float("nan")
    value = statistic(a, b) if len(a) else nan
    values = np.array([statistic(a[draw], b[draw]) for draw in draws])
    values = values[np.isfinite(values)]
    if not draws or len(values) < _LEAST_RESAMPLES * len(draws):
        return Figure(value, nan, nan)
    low, high = np.quantile(values, [0.025, 0.975])
    return Figure(value, float(low), float(high))


def without_nan(value: Any) -> Any:
    """A tree for JSON in which NaN is replaced by null, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
