"""The best of what a policy proposes, as it stands."""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import PlannerConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.search import Search, SearchPlanner


class BestOfNPlanner(SearchPlanner[PlannerConfig]):
    """Implements `Planner`. Nothing is drawn: the candidates are the proposals and the warm start."""

    Config = PlannerConfig

    def run(self, search: Search, warm: np.ndarray | None, proposals: np.ndarray | None) -> None:
        """Take the costs of warm start and proposals.

        Raises:
            UserError: there are neither.
        """
        given = [] if proposals is None else [search.shape.whole(proposals, "proposals")]
        if warm is not None and len(warm):
            given.append(search.shape.whole(np.asarray(warm)[None], "warm"))
        if not given:
            raise UserError("has nothing to choose from", where="best_of_n", remedy="give proposals")
        search.costs_of(np.concatenate(given).astype(np.float32))
