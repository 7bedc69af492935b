"""Two methods over the same windows: the paired change of a metric, and an exact sign test of the windows won.

The sign test (Arbuthnot 1710) asks how often a fair coin gives so one-sided a result. It takes no account of how large
a window's change is, so it holds beside the bootstrap interval of the mean change, whose answer may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from roboalign_ray.evaluation.bootstrap import PairedDifference, paired_difference
from roboalign_ray.evaluation.results import MetricCurves
from roboalign_ray.metrics.frame_metrics import LOWER_IS_BETTER

COMPARED = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class SignTest:
    """Windows won, lost and tied; ties take no part in the test.

    Attributes:
        p: two-sided probability of at least so one-sided a result where winning is as likely as losing; 1 without a
            window that is won or lost.
    """

    wins: int
    losses: int
    ties: int
    p: float


def sign_test(gains: np.ndarray) -> SignTest:
    """The exact two-sided sign test of gains [E], positive where a window is won; those not finite are left out."""
    finite = gains[np.isfinite(gains)]
    wins, losses = int((finite > 0).sum()), int((finite < 0).sum())
    count = wins + losses
    tail = sum(comb(count, k) for k in range(max(wins, losses), count + 1))
    return SignTest(wins, losses, finite.size - count, min(1.0, 2 * tail / 2**count))


@dataclass(frozen=True)
class Pairing:
    """One metric of a method against that of a rival, over the same windows.

    Attributes:
        change: the method's minus the rival's.
        test: of the windows that the method wins.
    """

    change: PairedDifference
    test: SignTest

    def as_json(self) -> dict[str, Any]:
        """Change with its interval, share of windows won, and the sign test."""
        return {
            "change": self.change.difference.as_json(),
            "wins": self.change.wins,
            "sign_test": vars(self.test),
        }


def paired(rival: MetricCurves, method: MetricCurves, metric: str) -> Pairing:
    """A metric of `method` against that of `rival`, window by window."""
    before, after = rival.per_episode(metric), method.per_episode(metric)
    lower = metric in LOWER_IS_BETTER
    change = paired_difference(
        before, after, lower_is_better=lower, resamples=method.resamples, episodes=method.episodes
    )
    return Pairing(change, sign_test(before - after if lower else after - before))
