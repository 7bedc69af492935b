"""From an environment to a plan in one call."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.cost_option import CostOption, open_terms
from roboalign_ray.planning.costs import ModelCost, PlanningState, RewardTerm
from roboalign_ray.planning.options import Setup
from roboalign_ray.planning.protocol import ActionPlan, Problem
from roboalign_ray.planning.registry import open_planner


class _PlanningEnv(Protocol):
    setup: Setup

    def planning_state(self, row: int = 0) -> PlanningState: ...


def plan_actions(
    env: Any,
    planner: str = "cem",
    *,
    horizon: int = 8,
    row: int = 0,
    seed: int = 0,
    warm: np.ndarray | None = None,
    proposals: np.ndarray | None = None,
    cost: CostOption | None = None,
    samples: int = 1,
    rows: int | None = None,
    **settings: Any,
) -> ActionPlan:
    """Plan from where an environment stands; the environment is not stepped.

    Args:
        env: of `gymnasium.make` or `make_vec`, wrapped or not.
        planner: a name of `PLANNERS`, or "module:attribute".
        horizon: H, actions of the plan.
        row: sub-environment to plan for.
        seed: of the search and of the predictions, which every candidate meets alike.
        warm: float [h, A], a plan to start from, such as `ActionPlan.rest` of the last one.
        proposals: float [N, H, A], candidates of a policy.
        cost: a function of `costs.Imagined` that gives float [R]; a name of `cost_option.COSTS` or "module:attribute";
            or several by name with their settings and weights, {"progress": {"weights": …, "task": …}}; None takes
            minus the environment's reward.
        samples: predictions per candidate that the cost is averaged over.
        rows: most rows predicted at once; None for all candidates.
        settings: of the planner: candidates, iterations, seconds, knots, …

    Raises:
        UserError: the environment has no reward and no cost is given, or as the planner.
    """
    base = cast(_PlanningEnv, _base(env))
    setup, state = base.setup, base.planning_state(row)
    if cost is None:
        if setup.scorer is None:
            raise UserError("the environment has no reward", where="cost", remedy="give reward=… or cost=…")
        cost = RewardTerm(setup.scorer)
    total = ModelCost(setup.model, open_terms(cost, setup.card), samples=samples, rows=rows)
    problem = Problem(state, total, setup.low, setup.high, horizon)
    return open_planner(planner, settings).plan(problem, seed=seed, warm=warm, proposals=proposals)


def _base(env: Any) -> Any:
    found = getattr(env, "unwrapped", env)
    found = getattr(found, "vector", found)
    if not hasattr(found, "planning_state"):
        raise UserError(
            f"is of type {type(found).__name__}", where="env", remedy="make RoboAlign/WorldModel-v0"
        )
    return found
