"""What planning is made of: a problem, a cost of candidates, and planners that answer with a plan.

    planner.plan(Problem(state, cost, low, high, horizon), seed=0) -> ActionPlan

A cost is a function of a state and a set of candidates; planners know nothing of world models. The seed is the cost's
too: all candidates of a search meet the same random numbers, so that a difference in cost is one of the actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from roboalign_ray.foundation.failures import UserError

Cost = Callable[[Any, np.ndarray, int], np.ndarray]
"""(state, candidates float32 [N, H, A], seed) -> costs float [N]; infinite or NaN where a candidate has none."""


@dataclass(frozen=True)
class Problem:
    """What is to be planned.

    Attributes:
        state: where candidates start; only the cost looks into it.
        cost: of candidates; the least is best.
        low, high: float [A], least and greatest action.
        horizon: H, actions of a plan.

    Raises:
        UserError: on construction, where the bounds are not finite and ordered, or the horizon is below 1.
    """

    state: Any
    cost: Cost
    low: np.ndarray
    high: np.ndarray
    horizon: int

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.horizon < 1:
            raise UserError(f"a plan of {self.horizon} actions", where="horizon", remedy="plan at least 1")
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not len(self.low):
            raise UserError(f"bounds of shapes {self.low.shape} and {self.high.shape}", where="action bounds")
        if not np.isfinite([self.low, self.high]).all() or (self.low > self.high).any():
            raise UserError("are not finite, or a lower one lies above its upper one", where="action bounds")

    @property
    def dims(self) -> int:
        """Action dimensions A."""
        return len(self.low)


@dataclass(frozen=True)
class Iteration:
    """One set of candidates that a planner looked at.

    Attributes:
        evaluated: candidates whose cost was asked for.
        failed: those that have none.
        best: least cost of the search so far.
        elites: float32 [E, H, A], the best candidates of the set, the best one first.
        elite_costs: float64 [E].
        seconds: wall time.
    """

    evaluated: int
    failed: int
    best: float
    elites: np.ndarray
    elite_costs: np.ndarray
    seconds: float


@dataclass(frozen=True)
class ActionPlan:
    """What a planner found.

    Attributes:
        actions: float32 [H, A], within the bounds.
        cost: of these actions, roughness included where the planner counts it.
        history: the iterations, in order.
        ended: "iterations" or "time": which budget ran out.
    """

    actions: np.ndarray
    cost: float
    history: tuple[Iteration, ...]
    ended: str = "iterations"

    @property
    def evaluated(self) -> int:
        """Candidates whose cost was asked for."""
        return sum(iteration.evaluated for iteration in self.history)

    @property
    def seconds(self) -> float:
        """Wall time of the search."""
        return sum(iteration.seconds for iteration in self.history)

    def rest(self, executed: int) -> np.ndarray:
        """What is left after the first actions were executed, float32 [H - executed, A]: `warm` of the next search."""
        return self.actions[executed:]


class Planner(Protocol):
    """Finds actions of low cost. Its class is called with its settings where it has a pydantic model `Config`."""

    def plan(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        warm: np.ndarray | None = None,
        proposals: np.ndarray | None = None,
    ) -> ActionPlan:
        """The same plan for the same arguments, unless a time budget ends the search.

        Args:
            seed: of everything random, the cost's included.
            warm: float [h, A], a plan to start from, such as what is left of the last one; its last action is repeated
                where it is shorter than the horizon.
            proposals: float [N, H, A], candidates that a policy proposes.

        Raises:
            UserError: these do not fit the problem, or no candidate has a cost.
        """
        ...
