"""What planners share: asking for the cost of sets of candidates, the history, and the two budgets."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import numpy as np

from roboalign_ray.config.planning import PlannerConfig, SearchConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.candidates import CandidateShape
from roboalign_ray.planning.protocol import ActionPlan, Iteration, Problem

Clock = Callable[[], float]
Settings = TypeVar("Settings", bound=PlannerConfig)


class Search:
    """One search: sets of candidates in, a plan out.

    Args:
        problem: see `Problem`.
        config: of the planner.
        seed: of candidates and of the cost, which meets the same one in every set.
        clock: seconds; for the time budget and the history.

    Attributes:
        shape: how candidates are made of knots.
        rng: of the candidates.
    """

    def __init__(self, problem: Problem, config: PlannerConfig, seed: int, clock: Clock) -> None:
        if seed < 0:
            raise UserError(f"is {seed}", where="seed", remedy="give 0 or more")
        self.shape = CandidateShape(problem, getattr(config, "knots", None))
        self.rng = np.random.default_rng(seed)
        self._problem, self._config, self._seed, self._clock = problem, config, seed, clock
        self._history: list[Iteration] = []
        self._best: tuple[float, np.ndarray] | None = None
        self._began, self._mark = clock(), clock()

    def goes_on(self) -> bool:
        """Whether another set fits both budgets."""
        config = self._config
        assert isinstance(config, SearchConfig)
        if not self._history:
            return True
        return len(self._history) < config.iterations and not self._late()

    def costs(self, knots: np.ndarray) -> np.ndarray:
        """Costs float64 [N] of a set of candidates [N, P], infinite where there is none; adds to the history.

        Raises:
            UserError: the cost gives another number of them.
        """
        return self.costs_of(self.shape.actions(knots))

    def costs_of(self, actions: np.ndarray) -> np.ndarray:
        """As `costs`, of actions float32 [N, H, A]."""
        values = np.asarray(self._problem.cost(self._problem.state, actions, self._seed), np.float64)
        if values.shape != (len(actions),):
            raise UserError(f"gives {values.shape} for {len(actions)} candidates, not one each", where="cost")
        costs = np.where(np.isnan(values), np.inf, values)
        if self._config.smoothness:
            costs = costs + self._config.smoothness * self.shape.roughness(actions)
        self._add(actions, costs)
        return costs

    def plan(self) -> ActionPlan:
        """The best candidate of all sets.

        Raises:
            UserError: none has a cost.
        """
        if self._best is None:
            count = sum(iteration.evaluated for iteration in self._history)
            raise UserError(f"none of the {count} candidates has a cost", where="planner")
        cost, actions = self._best
        short = isinstance(self._config, SearchConfig) and len(self._history) < self._config.iterations
        return ActionPlan(actions, cost, tuple(self._history), "time" if short else "iterations")

    def _late(self) -> bool:
        budget = getattr(self._config, "seconds", None)
        if budget is None:
            return False
        longest = max(iteration.seconds for iteration in self._history)
        return self._clock() - self._began + longest > budget

    def _add(self, actions: np.ndarray, costs: np.ndarray) -> None:
        order = np.argsort(costs, kind="stable")[: self._config.elites]
        order = order[np.isfinite(costs[order])]
        if len(order) and (self._best is None or costs[order[0]] < self._best[0]):
            self._best = float(costs[order[0]]), actions[order[0]]
        best = np.inf if self._best is None else self._best[0]
        now = self._clock()
        failed = int((~np.isfinite(costs)).sum())
        self._history.append(
            Iteration(len(costs), failed, best, actions[order], costs[order], now - self._mark)
        )
        self._mark = now


class SearchPlanner(ABC, Generic[Settings]):
    """Base class of the planners of this room; implements `Planner`.

    Attributes:
        Config: class of the settings.
        clock: seconds; for the time budget and the history.
    """

    Config: type[PlannerConfig] = SearchConfig
    clock: Clock = staticmethod(time.monotonic)

    def __init__(self, config: Settings | None = None) -> None:
        self.config = cast(Settings, self.Config() if config is None else config)

    def plan(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        warm: np.ndarray | None = None,
        proposals: np.ndarray | None = None,
    ) -> ActionPlan:
        """See `Planner.plan`."""
        search = Search(problem, self.config, seed, self.clock)
        self.run(search, warm, proposals)
        return search.plan()

    @abstractmethod
    def run(self, search: Search, warm: np.ndarray | None, proposals: np.ndarray | None) -> None:
        """Ask `search` for the costs of sets of candidates. The plan is the best of all candidates."""


def given_knots(shape: CandidateShape, warm: np.ndarray | None, proposals: np.ndarray | None) -> np.ndarray:
    """Knots [n, P] of what a search was given: the warm start first, then the proposals; n may be 0.

    Raises:
        UserError: they do not fit the problem.
    """
    parts = [np.empty((0, shape.size))]
    if warm is not None and len(warm):
        parts.append(shape.knots(np.asarray(warm)[None], "warm"))
    if proposals is not None:
        parts.append(shape.knots(proposals, "proposals"))
    return np.concatenate(parts)


def drawn(
    search: Search, config: SearchConfig, mean: np.ndarray, std: np.ndarray, given: np.ndarray
) -> np.ndarray:
    """A set of candidates [N, P] around a mean: the given ones first, then straight ones and free ones.

    Args:
        mean, std: float64 [P].
        given: [n, P]; those beyond the set's size are left out.
    """
    noise = search.rng.standard_normal((config.candidates, search.shape.size))
    candidates = search.shape.clipped(mean + std * noise)
    return with_given(search, config, candidates, given)


def with_given(search: Search, config: SearchConfig, candidates: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Drawn candidates [N, P], a share of them made straight, the first ones replaced by given ones [n, P]."""
    held = round(config.straight * len(candidates))
    if held:
        candidates[-held:] = search.shape.straight(candidates[-held:])
    count = min(len(given), len(candidates))
    candidates[:count] = given[:count]
    return candidates
