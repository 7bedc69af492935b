"""Gradient-free refinement: change the best plan so far a little, and keep what is better.

An evolution strategy with one parent whose step grows and shrinks by the one-fifth rule (Rechenberg 1973).
"""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import RefineConfig
from roboalign_ray.planning.search import Search, SearchPlanner, drawn, given_knots

_FIFTH, _GROW, _SHRINK = 0.2, 1.5, 0.6


class RefinePlanner(SearchPlanner[RefineConfig]):
    """Implements `Planner`. Starts from warm start and proposals; without any, from the middle of the bounds."""

    Config = RefineConfig

    def run(self, search: Search, warm: np.ndarray | None, proposals: np.ndarray | None) -> None:
        """Warm start and proposals are candidates of the first set, so the plan is never worse than they are."""
        config = self.config
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
