"""The rollout actor: reads prompts, rolls out the world model, and returns rollouts without pixels."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from roboalign_ray.config import EpisodesConfig, RewardConfig, RolloutConfig
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.weight_sync.manifest import Parcel
from roboalign_ray.foundation.weight_sync.packing import unpack
from roboalign_ray.rewards.group_scorer import choose_best
from roboalign_ray.rewards.registry import build_reward
from roboalign_ray.world_model.branching import Choose, branched_rollouts
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import Prompt, Rollout, RolloutReport, WorldModel
from roboalign_ray.world_model.registry import open_world_model, read_weights

_FETCH_S = 600.0  # limit for fetching a weight version


class RolloutActor:
    """Makes rollouts. Weights are passed with each call, so a restarted actor needs no further state.

    `load_weights` and `beat` may be called from other threads during a rollout.

    Args:
        world_model: folder of the world model; its weights are version 0.
        rollout, episodes: configs.
        threads: torch threads.
        tokenizer: folder of the tokenizer, if it is not the one that the world model's description names.
        reward: chooses the sample that a shared history continues with, where `rollout.branching` uses the best one.
    """

    def __init__(
        self,
        world_model: Path,
        rollout: RolloutConfig,
        episodes: EpisodesConfig,
        threads: int = 1,
        tokenizer: Path | None = None,
        reward: RewardConfig | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.tokenizer_folder, self.world_model_folder = tokenizer, world_model
        self.reward_config = reward
        self.config, self.episodes = rollout, episodes
        self._loading, self._held = threading.Lock(), (0, 0)

    @cached_property
    def _model(self) -> WorldModel:
        return open_world_model(self.world_model_folder, self.config, tokenizer=self.tokenizer_folder)

    @cached_property
    def _reader(self) -> PromptReader:
        card = self._model.card
        return PromptReader(self.episodes, card.height, card.width, card.views)

    @cached_property
    def _choose(self) -> Choose | None:
        if self.reward_config is None:
            return None
        return choose_best(self._model, self._reader, build_reward(self.reward_config))

    def ready(self) -> None:
        """Load everything, so that bad input is found before the first rollout.

        Raises:
            UserError: a folder or the store cannot be read.
        """
        _ = self._model, self._reader, self._choose

    def beat(self) -> int:
        """A number that grows while work is done. Called from another thread."""
        return self._model.work if "_model" in self.__dict__ else 0

    def load_weights(self, version: int, weights: Any, incarnation: int = 0) -> None:
        """Use these weights from the next segment on, unless the present ones are newer.

        Args:
            version: version of the weights.
            weights: arrays by name; or a sequence with one reference to their `Parcel`, which is fetched here; an
                empty sequence means those of the world model's folder.
            incarnation: of the learner, by its restart count. Versions of a later one are newer, whatever their number.

        Raises:
            WeightsRefused: the weights arrived incomplete or damaged; the present ones stay.
        """
        with self._loading:
            if (incarnation, version) <= self._held:
                return
            if not weights:
                weights = read_weights(self.world_model_folder)
            elif not isinstance(weights, Mapping):
                weights = _received(weights[0])
            self._model.load_weights(weights, version)
            self._held = (incarnation, version)

    def rollout(
        self,
        names: Sequence[PromptName],
        seeds: Sequence[tuple[int, ...]],
        version: int = 0,
        weights: Any = (),
        incarnation: int = 0,
    ) -> tuple[list[Rollout], RolloutReport]:
        """One rollout per prompt that can be read, and the numbers of the call.

        A name that shares frames gives a rollout behind a self-generated history, see `branched_rollouts`.

        Raises:
            UserError: prompts and world model do not fit.
        """
        began = time.perf_counter()
        self.load_weights(version, weights, incarnation)
        prompts: list[Prompt] = []
        shared: list[int] = []
        kept: list[tuple[int, ...]] = []
        failed: dict[str, Failed] = {}
        for name, group_seeds in zip(names, seeds, strict=True):
            try:
                prompts.append(self._reader.prompt(name, self.config.horizon))
                kept.append(group_seeds)
                shared.append(name.shared)
            except Exception as error:  # one bad episode fails only its own group
                failed[name.prompt_id] = Failed(f"{type(error).__name__}: {error}", "prompt")
        rollouts = branched_rollouts(self._model, prompts, shared, kept, choose=self._choose)
        return rollouts, RolloutReport(
            failed=failed,
            units=sum(rollout.payload.units for rollout in rollouts),
            seconds=time.perf_counter() - began,
            peak_sequence=max((rollout.cost.peak_sequence for rollout in rollouts), default=0),
            cache_bytes=max((rollout.cost.cache_bytes for rollout in rollouts), default=0),
        )


def _received(reference: Any) -> Mapping[str, Any]:
    """Fetch, check and unpack a weight version."""
    parcel: Parcel = _fetch(reference)
    return unpack(parcel.manifest, _fetch(list(parcel.buckets)))


def _fetch(reference: Any) -> Any:
    import ray

    return ray.get(reference, timeout=_FETCH_S)
