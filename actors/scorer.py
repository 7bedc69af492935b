"""The scorer actor: decodes rollouts and scores them with the job's reward.

It reads the real continuations itself. A student judge is passed by reference with each call, and fetched if its
version is new.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.alignment.records.scored import GroupRecord, ScoredGroup
from roboalign_ray.config import EpisodesConfig, RewardConfig
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.files import unpack_folder
from roboalign_ray.foundation.telemetry.metrics import encode_gif
from roboalign_ray.judge.student.model import Student
from roboalign_ray.rewards.group_scorer import score_rollout
from roboalign_ray.rewards.protocol import Reward
from roboalign_ray.rewards.registry import build_reward
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import Decoder, Rollout
from roboalign_ray.world_model.registry import open_decoder

_FETCH_S = 600.0  # limit for fetching a student


class ScorerActor:
    """Scores rollout groups.

    Args:
        world_model: folder of the world model; its weights are not read.
        reward, episodes: configs.
        threads: torch threads.
        tokenizer: folder of the tokenizer; see `RolloutActor`.
    """

    def __init__(
        self,
        world_model: Path,
        reward: RewardConfig,
        episodes: EpisodesConfig,
        threads: int = 1,
        tokenizer: Path | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.world_model_folder, self.tokenizer_folder = world_model, tokenizer
        self.reward_config, self.episodes = reward, episodes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._groups = 0
        self._judge: Any = None  # reference to the student that `_reward` uses
        self._reward: Reward | None = None

    @cached_property
    def _decoder(self) -> Decoder:
        return open_decoder(self.world_model_folder, tokenizer=self.tokenizer_folder, device=str(self.device))

    @cached_property
    def _reader(self) -> PromptReader:
        card = self._decoder.card
        return PromptReader(self.episodes, card.height, card.width, card.views)

    def ready(self) -> None:
        """Load everything, so that bad input is found before the first score.

        Raises:
            UserError: the world model's folder or the store cannot be read.
        """
        _ = self._decoder, self._reader
        if not self.reward_config.needs_judge:
            self._load_reward(())

    def beat(self) -> int:
        """Number of scored groups. Called from another thread."""
        return self._groups

    def score(
        self, groups: Sequence[Rollout], student: Sequence[Any] = ()
    ) -> tuple[ScoredGroup | list[GroupRecord], ...]:
        """The scored groups for the learner, one by one, and as last value their numbers for the driver.

        Args:
            groups: groups to score.
            student: one reference to the files of the student; empty if the reward uses none.

        Raises:
            UserError: the reward needs a student and none came, or it cannot be read.
        """
        reward = self._load_reward(student)
        scored = [self._score_group(group, reward) for group in groups]
        return (*scored, [group.record() for group in scored])

    def video(self, group: ScoredGroup) -> bytes:
        """A GIF of a group's first sample and the real continuation: real on the left, views below each other.

        Raises:
            UserError: the episode cannot be read.
        """
        rollout = group.rollout
        generated = self._decoder.decode(rollout)[0]
        real = self._reader.recorded(PromptName.parse(rollout.prompt_id), rollout.start + len(generated))
        both = np.concatenate([real.frames[rollout.start + 1 :], generated], axis=3)  # [T, V, H, 2 W, 3]
        return encode_gif(both.reshape(len(both), -1, *both.shape[3:]), real.fps)

    def _load_reward(self, student: Sequence[Any]) -> Reward:
        reference = student[0] if student else None
        if self._reward is None or reference != self._judge:
            judge = _unpacked(_fetch(reference)) if reference is not None else None
            self._reward, self._judge = build_reward(self.reward_config, judge, self.device), reference
        return self._reward

    def _score_group(self, group: Rollout, reward: Reward) -> ScoredGroup:
        """Score a group. An exception fails only the samples of this group."""
        self._groups += 1
        try:
            return ScoredGroup(group, tuple(score_rollout(group, self._decoder, self._reader, reward)))
        except Exception as error:
            kind = "episode" if isinstance(error, UserError) else "scorer"
            failed = Failed(f"{type(error).__name__}: {error}", kind)
            return ScoredGroup(group, (failed,) * len(group.seeds))


def _unpacked(files: Mapping[str, bytes]) -> Student:
    with tempfile.TemporaryDirectory() as folder:
        unpack_folder(files, Path(folder))
        return Student.load(folder)


def _fetch(reference: Any) -> Mapping[str, bytes]:
    """A student's files, from a reference or, in a process without Ray, as given."""
    if isinstance(reference, Mapping):
        return reference
    import ray

    return ray.get(reference, timeout=_FETCH_S)
