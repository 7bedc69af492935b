"""Gradient-free refinement: change the best plan so far a little, and keep what is better.

An evolution strategy with one parent whose step grows and shrinks by the one-fifth rule (Rechenberg 1973).
"""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import RefineConfig
from roboalign_ray.planning.protocol import ActionPlan, Problem
from roboalign_ray.planning.search import Search, SearchPlanner, drawn, given_knots

_FIFTH, _GROW, _SHRINK = 0.2, 1.5, 0.6


class RefinePlanner(SearchPlanner):
    """Implements `Planner`. Starts from warm start and proposals; without any, from the middle of the bounds."""

    Config = RefineConfig

    def plan(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        warm: np.ndarray | None = None,
        proposals: np.ndarray | None = None,
    ) -> ActionPlan:
        """See `Planner.plan`. What it is given are candidates of the first set, so the plan is never worse than it."""
        config = self.config
        assert isinstance(config, RefineConfig)
        search = Search(problem, config, seed, self.clock)
        shape = search.shape
        given = given_knots(shape, warm, proposals)
        given = given if len(given) else shape.centre[None]
        best, best_cost, spread = given[0], np.inf, config.spread
        while search.goes_on():
            candidates = drawn(search, config, best, spread * shape.half, given)
            costs = search.costs(candidates)
            place = int(costs.argmin())
            helped = float((costs < best_cost).mean()) if np.isfinite(best_cost) else _FIFTH
            if costs[place] < best_cost:
                best, best_cost = candidates[place], float(costs[place])
            if helped != _FIFTH:
                spread *= _GROW if helped > _FIFTH else _SHRINK
            spread = max(spread, config.least_spread)
            given = given[:0]
        return search.plan()
