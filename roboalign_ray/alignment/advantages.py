"""Group-normalised advantages (GRPO, arXiv 2402.03300): a sample's reward against the others of its prompt.

Failed samples and rewards that are not finite take no part: neither in mean and deviation, nor in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.rewards.protocol import Score, Scored

DEVIATION_FLOOR = 1e-4  # added to the deviation: groups that differ by rounding alone keep tiny advantages
FEWEST_SAMPLES = 2  # one sample has nothing to be compared with


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages of one group.

    Attributes:
        values: float64 [G], 0 where not valid.
        valid: bool [G], samples that may be trained on.
        dropped: whether the whole group was left out for having fewer than two valid samples.
    """

    values: np.ndarray
    valid: np.ndarray
    dropped: bool


def rewards_of(scores: Sequence[Score]) -> np.ndarray:
    """Total rewards float64 [G]; NaN where a sample failed or its reward is not finite."""
    totals = [score.total if isinstance(score, Scored) else np.nan for score in scores]
    rewards = np.asarray(totals, dtype=np.float64)
    return np.where(np.isfinite(rewards), rewards, np.nan)


def group_advantages(scores: Sequence[Score], floor: float = DEVIATION_FLOOR) -> GroupAdvantages:
    """(reward - mean) / (deviation + floor) over the valid samples of a group.

    The deviation is the sample one (n - 1), as public GRPO code has it. Equal rewards give exactly 0.

    Args:
        scores: G of them.
        floor: added to the deviation.
    """
    rewards = rewards_of(scores)
    valid = np.isfinite(rewards)
    values = np.zeros(len(rewards))
    if valid.sum() < FEWEST_SAMPLES:
        return GroupAdvantages(values, np.zeros_like(valid), dropped=True)
    kept = rewards[valid]
    # The mean of equal floats can differ from them in the last digit, hence the test instead of the formula.
    if np.ptp(kept) > 0:
        values[valid] = (kept - kept.mean()) / (kept.std(ddof=1) + floor)
    return GroupAdvantages(values, valid, dropped=False)
