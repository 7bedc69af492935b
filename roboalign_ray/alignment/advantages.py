"""Group-normalised advantages (GRPO, arXiv 2402.03300): a sample's reward relative to the others of its prompt.

There are two kinds of credit. `group_advantages` gives every token of a sample the sample's advantage: all that a
reward on whole clips allows. `frame_advantages` uses rewards per frame: a frame's tokens get credit for that frame and
later frames, not for earlier ones.

Failed samples and non-finite rewards are excluded from mean, deviation and loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.config import AlignmentConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.rewards.protocol import Score, Scored

DEVIATION_FLOOR = 1e-4  # added to the deviation: groups that differ only by rounding get tiny advantages
FEWEST_SAMPLES = 2  # one sample cannot be compared


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages of one group.

    Attributes:
        values: float64 [G], or [G, T] per generated frame; 0 where not valid.
        valid: bool [G], samples that may be trained on.
        dropped: whether the whole group was left out for having fewer than two valid samples.
    """

    values: np.ndarray
    valid: np.ndarray
    dropped: bool


@dataclass(frozen=True)
class BatchCounts:
    """Number of groups and samples that were used and left out.

    Attributes:
        groups, dropped_groups: all groups, and those with fewer than two valid samples.
        samples, failed_samples: all samples, and those that failed or were dropped with their group.
        flat_groups: groups whose valid samples all have the same reward: only the regulariser gives a gradient.
    """

    groups: int
    dropped_groups: int
    samples: int
    failed_samples: int
    flat_groups: int


def configured_advantages(scores: Sequence[Score], config: AlignmentConfig) -> GroupAdvantages:
    """A group's advantages, with the credit of `alignment.credit`.

    Raises:
        UserError: credit by frame is set, but the reward scores whole clips.
    """
    if config.credit == "frame":
        return frame_advantages(scores, config.discount)
    return group_advantages(scores)


def batch_counts(advantages: Sequence[GroupAdvantages]) -> BatchCounts:
    """Counts of a batch from its groups' advantages."""
    return BatchCounts(
        groups=len(advantages),
        dropped_groups=sum(a.dropped for a in advantages),
        samples=sum(len(a.valid) for a in advantages),
        failed_samples=sum(int((~a.valid).sum()) for a in advantages),
        flat_groups=sum(not a.dropped and not a.values.any() for a in advantages),
    )


def rewards_of(scores: Sequence[Score]) -> np.ndarray:
    """Total rewards float64 [G]; NaN if a sample failed or its reward is not finite."""
    totals = [score.total if isinstance(score, Scored) else np.nan for score in scores]
    rewards = np.asarray(totals, dtype=np.float64)
    return np.where(np.isfinite(rewards), rewards, np.nan)


def group_advantages(scores: Sequence[Score], floor: float = DEVIATION_FLOOR) -> GroupAdvantages:
    """(reward - mean) / (deviation + floor) over the valid samples of a group.

    The deviation is the sample deviation (n - 1), as in public GRPO code. Equal rewards give exactly 0.

    Args:
        scores: the scores of G samples.
        floor: added to the deviation.
    """
    return _normalised(rewards_of(scores)[:, None], floor, columns=False)


def frame_advantages(
    scores: Sequence[Score], discount: float = 1.0, floor: float = DEVIATION_FLOOR
) -> GroupAdvantages:
    """As `group_advantages`, per frame: of the discounted mean reward from that frame on, compared at the same frame.

    Args:
        scores: the scores of G samples; valid ones have a reward per frame.
        discount: weight of a frame's reward relative to the frame before it, in [0, 1].
        floor: added to the deviation.

    Raises:
        UserError: the reward scores whole clips.
    """
    frames = max(
        (len(s.per_frame) for s in scores if isinstance(s, Scored) and s.per_frame is not None), default=0
    )
    rewards = np.full((len(scores), max(1, frames)), np.nan)
    for row, score in zip(rewards, scores, strict=True):
        if isinstance(score, Scored):
            if score.per_frame is None:
                raise UserError(
                    "this reward judges clips as a whole, it says nothing of single frames",
                    where="alignment.credit",
                    remedy="set it to 'clip'",
                )
            row[:] = score.per_frame
    # weights[t, k]: weight of frame k's reward for frame t.
    distance = np.arange(rewards.shape[1])[None, :] - np.arange(rewards.shape[1])[:, None]
    weights = np.where(distance >= 0, float(discount) ** np.maximum(distance, 0), 0.0)
    return _normalised(rewards @ (weights / weights.sum(axis=1, keepdims=True)).T, floor, columns=True)


def _normalised(returns_GT: np.ndarray, floor: float, *, columns: bool) -> GroupAdvantages:
    """Every column minus its mean, divided by its deviation; values are [G, T], or [G] of a single column."""
    valid = np.isfinite(returns_GT).all(axis=1)
    values = np.zeros_like(returns_GT)
    dropped = bool(valid.sum() < FEWEST_SAMPLES)
    if not dropped:
        kept = returns_GT[valid]
        normalised = (kept - kept.mean(axis=0)) / (kept.std(axis=0, ddof=1) + floor)
        # The mean of equal floats can differ from them in the last digit, so equality is tested instead.
        values[valid] = np.where(np.ptp(kept, axis=0) > 0, normalised, 0.0)
    return GroupAdvantages(
        values if columns else values[:, 0], np.zeros_like(valid) if dropped else valid, dropped
    )
