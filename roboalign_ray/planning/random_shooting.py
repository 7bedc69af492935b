"""Random shooting: the best of uniformly drawn candidates. The planner that others must beat at the same budget."""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import SearchConfig
from roboalign_ray.planning.search import Search, SearchPlanner, given_knots, with_given


class RandomShootingPlanner(SearchPlanner[SearchConfig]):
    """Implements `Planner`. Iterations are further sets, none of which learns from another."""

    Config = SearchConfig

    def run(self, search: Search, warm: np.ndarray | None, proposals: np.ndarray | None) -> None:
        """A warm start and the proposals are candidates of the first set."""
        config = self.config
        given = given_knots(search.shape, warm, proposals)
        while search.goes_on():
            size = (config.candidates, search.shape.size)
            candidates = search.rng.uniform(search.shape.low, search.shape.high, size)
            search.costs(with_given(search, config, candidates, given))
            given = given[:0]
