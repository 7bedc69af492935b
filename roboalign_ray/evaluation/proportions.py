"""Success rates with Wilson score intervals (Wilson 1927), which keep their coverage at few trials and near 0 and 1."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from roboalign_ray.evaluation.bootstrap import Interval


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Share of successes; NaN where there was no trial.

    With z the normal quantile of (1 + level) / 2: centre (p + z²/2n) / (1 + z²/n), half width
    z / (1 + z²/n) · sqrt(p (1 - p) / n + z²/4n²).

    Raises:
        ValueError: more successes than trials, or a negative number.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if not trials:
        nan = float("nan")
        return Interval(nan, nan, nan, 0, level)
    share, z = successes / trials, NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), trials, level)
