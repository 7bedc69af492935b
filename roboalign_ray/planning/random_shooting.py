"""Random shooting: the best of uniformly drawn candidates. The planner that others must beat at the same budget."""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import SearchConfig
from roboalign_ray.planning.protocol import ActionPlan, Problem
from roboalign_ray.planning.search import Search, SearchPlanner, given_knots, with_given


class RandomShootingPlanner(SearchPlanner):
    """Implements `Planner`. Iterations are further sets, none of which learns from another."""

    Config = SearchConfig

    def plan(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        warm: np.ndarray | None = None,
        proposals: np.ndarray | None = None,
    ) -> ActionPlan:
        """See `Planner.plan`. A warm start and the proposals are candidates of the first set."""
        config = self.config
        assert isinstance(config, SearchConfig)
        search = Search(problem, config, seed, self.clock)
        given = given_knots(search.shape, warm, proposals)
        while search.goes_on():
            size = (config.candidates, search.shape.size)
            candidates = search.rng.uniform(search.shape.low, search.shape.high, size)
            search.costs(with_given(search, config, candidates, given))
            given = given[:0]
        return search.plan()
