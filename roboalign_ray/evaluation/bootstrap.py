"""Means with 95 % bootstrap intervals, and paired differences.

There is one value per window. Windows of one episode are not independent, so whole episodes are resampled, each with
all of its windows (a cluster bootstrap). With fewer than `LEAST_EPISODES` episodes single windows are resampled
instead, and the interval is too narrow where an episode has several windows; `resampling` says so in words. Intervals
are percentile intervals (Efron 1979). Values that are not finite (a metric that is undefined on a window) are left out,
and `n` is the number of values that remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_EPISODES = 8  # they can be drawn in 6,435 different ways, more than the 2,000 resamples of an interval
_CHUNK = 1 << 22  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
        mean, low, high: NaN if no value was finite; low = high = mean if only one was.
        n: number of values.
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
    """After minus before, window by window.

    Attributes:
        difference: mean difference and interval.
        wins: share of windows on which `after` is better; ties count half.
    """

    difference: Interval
    wins: float


def extent(windows: int, episodes: int) -> str:
    """How much was measured: "16 windows of 2 held-out episodes"."""
    return f"{windows} window{'s' * (windows != 1)} of {episodes} held-out episode{'s' * (episodes != 1)}"


def resampling(windows: int, episodes: int) -> str:
    """What the intervals of this many windows resample, and what that means for them, in one or two sentences."""
    if episodes >= LEAST_EPISODES:
        return "Intervals are 95 % bootstrap intervals over episodes, each with all of its windows."
    text = f"Intervals are 95 % bootstrap intervals over windows, as there are fewer than {LEAST_EPISODES} episodes."
    if windows > episodes:
        text += " Windows of one episode are not independent, so the intervals are too narrow."
    return text


def bootstrap_mean(
    values: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    *,
    episodes: Sequence[str] = (),
) -> Interval:
    """Mean of one value per window with its percentile bootstrap interval.

    Args:
        values: float [E], one per window; average a window's frames and samples first.
        resamples: bootstrap resamples.
        seed: seed of the resampling, so that a table can be reproduced.
        level: coverage.
        episodes: the episode of every window; if empty, every window has one of its own.

    Raises:
        ValueError: there are not as many episodes as values.
    """
    everything = np.asarray(values, dtype=np.float64)
    if episodes and len(episodes) != len(everything):
        raise ValueError(f"{len(episodes)} episodes for {len(everything)} values")
    kept = np.isfinite(everything)
    finite = everything[kept]
    if not finite.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0, level)
    units = np.arange(finite.size)
    if len(set(episodes)) >= LEAST_EPISODES:
        units = _numbered([name for name, known in zip(episodes, kept, strict=True) if known])
    means = _resampled_means(finite, units, resamples, np.random.default_rng(seed))
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
    episodes: Sequence[str] = (),
) -> PairedDifference:
    """Mean of after - before over the same windows, resampled in pairs, and the share of windows won.

    Args:
        before, after: float [E], same windows in the same order.
        episodes: see `bootstrap_mean`.

    Raises:
        ValueError: the arrays have different shapes.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"paired values differ in shape: {before.shape} and {after.shape}")
    change = after - before
    gain = change[np.isfinite(change)] * (-1 if lower_is_better else 1)
    wins = float(((gain > 0) + 0.5 * (gain == 0)).mean()) if gain.size else float("nan")
    return PairedDifference(bootstrap_mean(change, resamples, seed, level, episodes=episodes), wins)


def _numbered(names: Sequence[str]) -> np.ndarray:
    """Names as numbers, counted in the order of their first appearance, int64 [E]."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _resampled_means(
    values: np.ndarray, units: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of the values of units that are drawn with replacement, float64 [resamples].

    Args:
        values: float64 [E].
        units: int [E], the unit of each value, 0 to U - 1; U units are drawn.
    """
    sums, counts = np.bincount(units, weights=values), np.bincount(units)
    means = np.empty(resamples)
    step = max(1, _CHUNK // len(sums))
    for first in range(0, resamples, step):
        drawn = rng.integers(len(sums), size=(min(step, resamples - first), len(sums)))
        means[first : first + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means
