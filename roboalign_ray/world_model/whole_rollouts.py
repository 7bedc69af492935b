"""Whole rollouts from `begin`, `step` and `rollouts`: a base class for world models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt, Rollout

State = TypeVar("State")


class WholeRollouts(ABC, Generic[State]):
    """`WorldModel.rollout` and `rollout_again` in terms of the other methods."""

    @abstractmethod
    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> State:
        """See `WorldModel.begin`."""

    @abstractmethod
    def step(self, state: State, actions: np.ndarray) -> State:
        """See `WorldModel.step`."""

    @abstractmethod
    def rollouts(self, state: State) -> list[Rollout]:
        """See `WorldModel.rollouts`."""

    @abstractmethod
    def plan(self, horizon: int) -> tuple[int, ...]:
        """See `WorldModel.plan`."""

    @abstractmethod
    def load_weights(self, state_dict: Mapping[str, Any], version: int) -> None:
        """See `WorldModel.load_weights`."""

    def rollout(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> list[Rollout]:
        """One rollout per prompt, `len(seeds[i])` samples each; prompts of equal shape run as one batch.

        Raises:
            UserError: prompts do not fit the model, or seeds and prompts do not match.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"{len(seeds)} tuples of seeds for {len(prompts)} prompts", where="rollout")
        batches: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            batches[prompt.horizon, prompt.given, len(seeds[index])].append(index)
        made: dict[int, Rollout] = {}
        for members in batches.values():
            some = [prompts[index] for index in members]
            state = self.begin(some, [seeds[index] for index in members])
            made.update(zip(members, self.rollouts(self.step(state, whole_actions(some))), strict=True))
        return [made[index] for index in range(len(prompts))]

    def rollout_again(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[tuple[int, ...]],
        weights: Sequence[tuple[int, Mapping[str, Any]]],
    ) -> list[Rollout]:
        """As `rollout`, with the weights of every segment given; see `WorldModel.rollout_again`.

        The model has the last of these weights afterwards.
        """
        actions, plan = whole_actions(prompts), self.plan(prompts[0].horizon)
        check_weights_of_segments(weights, plan)
        state, done = self.begin(prompts, seeds), 0
        for (version, values), frames in zip(weights, plan, strict=True):
            self.load_weights(values, version)
            state = self.step(state, actions[:, done : done + frames])
            done += frames
        return self.rollouts(state)


def check_weights_of_segments(weights: Sequence[Any], plan: Sequence[int]) -> None:
    """Check that there are weights for each segment of a plan.

    Raises:
        UserError: the numbers differ.
    """
    if len(weights) != len(plan):
        raise UserError(f"{len(weights)} weight versions for {len(plan)} segments", where="rollout")


def whole_actions(prompts: Sequence[Prompt]) -> np.ndarray:
    """The actions of prompts of one horizon: [B, T, A].

    Raises:
        UserError: they are not [T >= 1, A], or differ in shape.
    """
    for prompt in prompts:
        if (
            prompt.actions.ndim != 2
            or not len(prompt.actions)
            or prompt.actions.shape != prompts[0].actions.shape
        ):
            where = f"prompt '{prompt.prompt_id}'"
            raise UserError(f"actions have shape {prompt.actions.shape}, not [T >= 1, A]", where=where)
    return np.stack([prompt.actions for prompt in prompts])
