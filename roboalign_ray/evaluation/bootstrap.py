"""Means with 95 % bootstrap intervals over episodes, and paired differences.

The unit that is resampled is the episode, since frames of one episode are not independent. Intervals are percentile
intervals (Efron 1979). Values that are not finite (a metric that is undefined on an episode) are left out, and `n` is
the number of values that remain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 22  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
        mean, low, high: NaN if no value was finite; low = high = mean if only one was.
        n: number of episodes.
        level: coverage.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_json(self) -> dict[str, float]:
        """Mean and limits."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class PairedDifference:
    """After minus before, episode by episode.

    Attributes:
        difference: mean difference and interval.
        wins: share of episodes on which `after` is better; ties count half.
    """

    difference: Interval
    wins: float


def bootstrap_mean(values: np.ndarray, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of one value per episode with its percentile bootstrap interval.

    Args:
        values: float [E], one per episode; average an episode's frames and samples first.
        resamples: bootstrap resamples.
        seed: seed of the resampling, so that a table can be reproduced.
        level: coverage.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0, level)
    means = _resampled_means(finite, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(finite.mean()), float(low), float(high), finite.size, level)


def paired_difference(
    before: np.ndarray,
    after: np.ndarray,
    *,
    lower_is_better: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Mean of after - before over the same episodes, resampled in pairs, and the share of episodes won.

    Args:
        before, after: float [E], same episodes in the same order.

    Raises:
        ValueError: the arrays have different shapes.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"paired values differ in shape: {before.shape} and {after.shape}")
    change = after - before
    gain = change[np.isfinite(change)] * (-1 if lower_is_better else 1)
    wins = float(((gain > 0) + 0.5 * (gain == 0)).mean()) if gain.size else float("nan")
    return PairedDifference(bootstrap_mean(change, resamples, seed, level), wins)


def _resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    means = np.empty(resamples)
    step = max(1, _CHUNK // values.size)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        means[first : first + count] = values[rng.integers(values.size, size=(count, values.size))].mean(
            axis=1
        )
    return means
