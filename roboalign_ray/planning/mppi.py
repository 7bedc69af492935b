"""Model predictive path integral control: the next mean is the candidates' mean, weighted by exp(-cost / temperature).

Williams et al. 2017 (arXiv 1707.02342), without its control cost, repeated with less noise each time. The temperature
is in standard deviations of the set's costs, so that it means the same for every cost.
"""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.planning import MppiConfig
from roboalign_ray.planning.search import Search, SearchPlanner, drawn, given_knots


class MppiPlanner(SearchPlanner[MppiConfig]):
    """Implements `Planner`. The plan is the best candidate, not the last mean, whose cost is unknown."""

    Config = MppiConfig

    def run(self, search: Search, warm: np.ndarray | None, proposals: np.ndarray | None) -> None:
        """A warm start is the first mean. It and the proposals are candidates of the first set."""
        config = self.config
        given = given_knots(search.shape, warm, proposals)
        mean = given[0] if len(given) else search.shape.centre
        std = config.spread * search.shape.half
        while search.goes_on():
            candidates = drawn(search, config, mean, std, given)
            weights = path_weights(search.costs(candidates), config.temperature)
            if weights is not None:
                mean = weights @ candidates
                given = mean[None]
            std = config.decay * std


def path_weights(costs: np.ndarray, temperature: float) -> np.ndarray | None:
    """Weights float64 [N] that sum to 1, 0 for infinite costs; None where all are.

    Args:
        temperature: in standard deviations of the finite costs.
    """
    finite = costs[np.isfinite(costs)]
    if not len(finite):
        return None
    scale = temperature * finite.std() or 1.0  # equal costs have equal weights
    weights = np.exp(-(costs - finite.min()) / scale)
    return weights / weights.sum()
