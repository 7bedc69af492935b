"""The scorer actor: decodes tokens where it stands and compares them with the real continuation it reads itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from roboalign_ray.alignment.prompts import PromptName, PromptReader
from roboalign_ray.alignment.scored import GroupRecord, ScoredGroup
from roboalign_ray.config import EpisodesConfig, FidelityRewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import Reward, RewardInput
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.codec import FrameCodec
from roboalign_ray.world_model.rollout import RolloutGroup


class ScorerActor:
    """Scores rollout groups.

    Args:
        tokenizer: folder.
        reward, episodes: configs.
        threads: torch threads.
    """

    def __init__(
        self, tokenizer: Path, reward: FidelityRewardConfig, episodes: EpisodesConfig, threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        self.tokenizer_folder, self.reward_config, self.episodes = tokenizer, reward, episodes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._groups = 0

    @cached_property
    def _tokenizer(self) -> DualBranchTokenizer:
        return DualBranchTokenizer.load(self.tokenizer_folder).to(self.device)

    @cached_property
    def _codec(self) -> FrameCodec:
        return FrameCodec(self._tokenizer)

    @cached_property
    def _reward(self) -> Reward:
        return FidelityReward(self.reward_config, device=self.device)

    @cached_property
    def _reader(self) -> PromptReader:
        size = self._tokenizer.config
        return PromptReader(self.episodes, size.height, size.width)

    def ready(self) -> None:
        """Load everything, so that bad input is told before the first score.

        Raises:
            UserError: the tokenizer or the store cannot be read.
        """
        _ = self._codec, self._reward, self._reader

    def beat(self) -> int:
        """A number that grows while work is done; may be asked for from another thread."""
        return self._groups

    def score(self, groups: Sequence[RolloutGroup]) -> tuple[ScoredGroup | list[GroupRecord], ...]:
        """The scored groups for the learner, one by one, and last their numbers for the driver."""
        scored = [self._score_group(group) for group in groups]
        return (*scored, [group.record() for group in scored])

    def _score_group(self, group: RolloutGroup) -> ScoredGroup:
        """An exception costs this group's samples their scores and nothing else."""
        self._groups += 1
        try:
            generated = self._codec.decode_group(group)
            real = self._reader.frames(PromptName.parse(group.prompt_id), generated.shape[1])
            scores = self._reward.score(RewardInput(group.instruction, real[0], generated, real[1:]))
            return ScoredGroup(group, tuple(scores))
        except Exception as error:
            kind = "episode" if isinstance(error, UserError) else "scorer"
            failed = Failed(f"{type(error).__name__}: {error}", kind)
            return ScoredGroup(group, (failed,) * len(group.seeds))
