"""Whether rewards differ enough within groups to teach anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.alignment.advantages import FEWEST_SAMPLES, rewards_of
from roboalign_ray.alignment.records.scored import ScoredGroup

_LEAST_MEAN = 1e-12


def relative_deviation(rewards: np.ndarray) -> float:
    """Standard deviation (n - 1) of rewards [K], relative to the size of their mean; 0 where all are equal."""
    return float(rewards.std(ddof=1) / max(abs(rewards.mean()), _LEAST_MEAN)) if np.ptp(rewards) else 0.0


def spread_figures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Figures over the groups with at least two scored samples.

    Returns:
        "reward_deviation": mean over groups of the deviation of their rewards, relative to the size of their mean.
        "equal_rewards": share of groups whose rewards are all equal.
    """
    rewards = [values[np.isfinite(values)] for values in (rewards_of(group.scores) for group in groups)]
    rewards = [values for values in rewards if len(values) >= FEWEST_SAMPLES]
    if not rewards:
        return {"reward_deviation": 0.0, "equal_rewards": 1.0}
    return {
        "reward_deviation": float(np.mean([relative_deviation(values) for values in rewards])),
        "equal_rewards": float(np.mean([not np.ptp(values) for values in rewards])),
    }
