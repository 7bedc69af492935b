"""The cross-entropy method: draw around a mean, keep the best, move the mean and the deviation to them.

de Boer et al. 2005; that the best candidates go on to the next iteration follows iCEM (arXiv 2008.06389).
"""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import CemConfig
from roboalign_ray.planning.search import Search, SearchPlanner, drawn, given_knots


class CemPlanner(SearchPlanner[CemConfig]):
    """Implements `Planner`. `elites` of the settings are those that the mean and the deviation are taken from."""

    Config = CemConfig

    def run(self, search: Search, warm: np.ndarray | None, proposals: np.ndarray | None) -> None:
        """A warm start is the first mean. It and the proposals are candidates of the first set."""
        config = self.config
        shape = search.shape
        given = given_knots(shape, warm, proposals)
        mean = given[0] if len(given) else shape.centre
        std, least = config.spread * shape.half, config.least_spread * shape.half
        kept, kept_costs = np.empty((0, shape.size)), np.empty(0)
        while search.goes_on():
            candidates = drawn(search, config, mean, std, given)
            costs = np.concatenate([search.costs(candidates), kept_costs])
            pool = np.concatenate([candidates, kept])
            order = np.argsort(costs, kind="stable")
            order = order[np.isfinite(costs[order])][: config.elites]
            if not len(order):
                continue
            elites = pool[order]
            mean = config.momentum * mean + (1 - config.momentum) * elites.mean(axis=0)
            std = np.maximum(config.momentum * std + (1 - config.momentum) * elites.std(axis=0), least)
            kept, kept_costs = pool[order[: config.kept]], costs[order[: config.kept]]
            given = mean[None]
