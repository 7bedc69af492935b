"""Costs of candidates in a world model: one state is branched into all of them, stepped, and read where a term asks.

    ModelCost(model, {"task": (RewardTerm(scorer), 1.0), "still": (my_term, 0.1)})(state, candidates, seed) -> [N]

A term is a function of `Predictions`. Frames are decoded when a term first asks for them, and no term that asks for
the last frame alone has the others decoded. Nothing is even stepped for terms that look at the actions only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.planning.scoring import ClipScorer, ClipSoFar
from roboalign_ray.world_model.protocol import Rollout, WorldModel


@dataclass(frozen=True)
class PlanningState:
    """Where candidates start.

    Attributes:
        state: a state of the world model.
        row: of that state.
        age: frames that it has generated.
        clip: what was seen so far, for rewards that judge clips.
    """

    state: Any
    row: int
    age: int
    clip: ClipSoFar


class Predictions(ABC):
    """What some dynamics predict for R rows of actions: a world model (`Imagined`), or a simulator.

    Attributes:
        clip: what was seen before the first action.
        actions: float32 [R, H, A].
    """

    clip: ClipSoFar
    actions: np.ndarray

    @property
    @abstractmethod
    def frames(self) -> np.ndarray:
        """Uint8 [R, H, V, height, width, 3]."""

    @property
    @abstractmethod
    def last_frame(self) -> np.ndarray:
        """Uint8 [R, V, height, width, 3]; asking for it alone is cheaper."""


class Imagined(Predictions):
    """What the world model predicts for R rows: candidates, each with as many seeds as the cost averages over.

    Attributes:
        start: where all of them start.
        seeds: R sampling seeds; those of every candidate are the same.
    """

    def __init__(
        self, model: WorldModel, start: PlanningState, actions: np.ndarray, seeds: tuple[int, ...]
    ) -> None:
        self.start, self.clip, self.actions = start, start.clip, actions
        self.seeds, self._model = seeds, model

    @cached_property
    def state(self) -> Any:
        """The world model's state behind the last action."""
        branched = self._model.branch(self.start.state, [self.start.row], [self.seeds])
        return self._model.step(branched, self.actions)

    @cached_property
    def frames(self) -> np.ndarray:
        """Uint8 [R, H, V, height, width, 3]."""
        return self._model.frames(self.state, self.start.age)

    @cached_property
    def last_frame(self) -> np.ndarray:
        """Uint8 [R, V, height, width, 3]; the other frames are not decoded for it."""
        if "frames" in vars(self):
            return self.frames[:, -1]
        return self._model.frames(self.state, self.start.age + self.actions.shape[1] - 1)[:, -1]

    @cached_property
    def rollout(self) -> Rollout:
        """The predictions in the model's own terms, such as tokens; decodes nothing."""
        [rollout] = self._model.rollouts(self.state)
        return rollout


Term = Callable[[Any], np.ndarray]
"""A function of `Predictions`, or of `Imagined` where it needs a world model, that gives costs float [R]; infinite or
NaN for a row that has none."""


class RewardTerm:
    """Minus a reward. A row whose score failed has no cost.

    Args:
        scorer: of the reward.
        last: of the last frame alone; for rewards that score frame by frame.

    Raises:
        UserError: on construction, where `last` is asked of a reward that judges clips.
    """

    def __init__(self, scorer: ClipScorer, *, last: bool = False) -> None:
        if last and not scorer.frame_by_frame:
            raise UserError("judges clips, so the last frame alone has no score", where="reward")
        self._scorer, self._last = scorer, last

    def __call__(self, predicted: Predictions) -> np.ndarray:
        """Float64 [R]."""
        frames = predicted.last_frame[:, None] if self._last else predicted.frames
        actions = predicted.actions[:, -frames.shape[1] :]
        scores = self._scorer.scores_behind(predicted.clip, frames, actions)
        return np.array([np.inf if isinstance(score, Failed) else -score.total for score in scores])


class GoalTerm:
    """Mean absolute difference of the last frame from a goal image, in shares of the whole range; needs no network.

    Args:
        goal: uint8 [V, H, W, 3].
    """

    def __init__(self, goal: np.ndarray) -> None:
        self._goal = goal.astype(np.float32)

    def __call__(self, predicted: Predictions) -> np.ndarray:
        """Float64 [R]."""
        difference = np.abs(predicted.last_frame.astype(np.float32) - self._goal)
        return difference.mean(axis=(1, 2, 3, 4), dtype=np.float64) / 255


class ModelCost:
    """Implements `Cost` for states of kind `PlanningState`.

    Every candidate meets the same seeds, those that the search's seed stands for, so equal candidates have equal costs.

    Args:
        model: that predicts.
        terms: name to (term, weight above 0).
        samples: predictions of a candidate, each with its own seed; the cost is their mean.
        rows: most rows that are predicted at once; None for all. Bounds memory.

    Raises:
        UserError: on construction, where there is no term, or a number is out of range.
    """

    def __init__(
        self,
        model: WorldModel,
        terms: Mapping[str, tuple[Term, float]],
        *,
        samples: int = 1,
        rows: int | None = None,
    ) -> None:
        check_terms(terms)
        for name, count in (("samples", samples), ("rows", rows)):
            if count is not None and count < 1:
                raise UserError(f"is {count}", where=name, remedy="give at least 1")
        self._model, self._terms, self._samples, self._rows = model, dict(terms), samples, rows

    def __call__(self, state: PlanningState, candidates: np.ndarray, seed: int) -> np.ndarray:
        """Costs float64 [N] of candidates float32 [N, H, A]."""
        seeds = np.random.default_rng(seed).integers(2**63, size=self._samples).tolist()
        each = len(candidates) if self._rows is None else max(1, self._rows // self._samples)
        blocks = [candidates[first : first + each] for first in range(0, len(candidates), each)]
        return np.concatenate([self._block(state, block, seeds) for block in blocks])

    def _block(self, state: PlanningState, candidates: np.ndarray, seeds: list[int]) -> np.ndarray:
        actions = np.repeat(candidates, self._samples, axis=0)
        imagined = Imagined(self._model, state, actions, tuple(seeds * len(candidates)))
        return weighted_sum(self._terms, imagined).reshape(len(candidates), self._samples).mean(axis=1)


def check_terms(terms: Mapping[str, tuple[Term, float]]) -> None:
    """Check the terms of a cost and their weights.

    Raises:
        UserError: there is none, or a weight is not above 0 and finite.
    """
    if not terms:
        raise UserError("has no term", where="cost", remedy="give a reward or a cost")
    for name, (_, weight) in terms.items():
        if not 0 < weight < np.inf:
            raise UserError(f"the weight of '{name}' is {weight}", where="cost", remedy="give one above 0")


def weighted_sum(terms: Mapping[str, tuple[Term, float]], predicted: Predictions) -> np.ndarray:
    """The terms' costs of predictions, float64 [R].

    Raises:
        UserError: a term gives another number of costs.
    """
    total = np.zeros(len(predicted.actions))
    for name, (term, weight) in terms.items():
        costs = np.asarray(term(predicted), np.float64)
        if costs.shape != total.shape:
            raise UserError(f"'{name}' gave {costs.shape} for {len(total)} rows", where="cost")
        total += weight * costs
    return total
