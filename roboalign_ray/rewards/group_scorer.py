"""Scores of a rollout's samples against the real episode, and the sample with the best one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.rewards.protocol import Reward, RewardInput, Score, Scored
from roboalign_ray.world_model.branching import Choose
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import Decoder, Rollout


def score_rollout(
    rollout: Rollout, decoder: Decoder, reader: PromptReader, reward: Reward
) -> Sequence[Score]:
    """One score per sample, of the frames of this rollout: those before `rollout.start` are not looked at.

    Raises:
        UserError: the episode cannot be read.
    """
    return reward.score(reward_input(rollout, decoder.decode(rollout), reader))


def reward_input(rollout: Rollout, generated: np.ndarray, reader: PromptReader) -> RewardInput:
    """A rollout beside the recorded episode, as rewards take it.

    Args:
        generated: uint8 [G, T, V, H, W, 3], the rollout's frames.

    Raises:
        UserError: the episode cannot be read.
    """
    first, last = rollout.start, rollout.start + rollout.horizon
    real = reader.recorded(PromptName.parse(rollout.prompt_id), last)
    return RewardInput(
        instruction=rollout.instruction,
        start=real.frames[first],
        generated=generated,
        real=real.frames[first + 1 :],
        views=real.views,
        actions=real.actions[first:],
        action_names=real.action_names,
        action_kinds=real.action_kinds,
        fps=real.fps,
        embodiment=real.embodiment,
        proprioception=None if real.state is None else real.state[first:],
    )


def choose_best(decoder: Decoder, reader: PromptReader, reward: Reward) -> Choose:
    """The positions of the samples with the highest totals, for `branched_rollouts`; the first of equal ones.

    What it returns raises `UserError` where no sample of a group could be scored.
    """

    def choose(groups: Sequence[Rollout]) -> list[int]:
        return [_best(group, score_rollout(group, decoder, reader, reward)) for group in groups]

    return choose


def _best(rollout: Rollout, scores: Sequence[Score]) -> int:
    totals = np.array([score.total if isinstance(score, Scored) else np.nan for score in scores])
    totals = np.where(np.isfinite(totals), totals, np.nan)
    if not np.isfinite(totals).any():
        reason = next((score.reason for score in scores if isinstance(score, Failed)), "no reward is finite")
        raise UserError(f"no candidate could be scored ({reason})", where=rollout.prompt_id)
    return int(np.nanargmax(totals))
