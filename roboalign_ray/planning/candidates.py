"""Candidates as few numbers: knots of each action dimension, and the actions that run straight between them.

A candidate of H actions is linear in its P knots, and every action lies between two of them, so knots within the
bounds give actions within the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.protocol import Problem


class CandidateShape:
    """Turns knots [N, P] into actions [N, H, A] and back. Dimension 0's knots stand first.

    Args:
        problem: bounds and horizon.
        knots: of each dimension, or one number for all; None leaves every action free. More knots than actions count
            as one per action.

    Raises:
        UserError: another number of entries than action dimensions.
    """

    def __init__(self, problem: Problem, knots: int | Sequence[int] | None = None) -> None:
        horizon, dims = problem.horizon, problem.dims
        counts = [knots or horizon] * dims if knots is None or isinstance(knots, int) else list(knots)
        if len(counts) != dims:
            raise UserError(f"{len(counts)} numbers of knots for {dims} action dimensions", where="knots")
        self._maps = [_interpolation(horizon, min(count, horizon)) for count in counts]
        self._back = [np.linalg.pinv(weights) for weights in self._maps]
        sizes = [weights.shape[1] for weights in self._maps]
        self._parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        self._low, self._high, self._horizon = problem.low, problem.high, horizon
        self.low, self.high = np.repeat(problem.low, sizes), np.repeat(problem.high, sizes)

    @property
    def size(self) -> int:
        """Knots P of a candidate."""
        return len(self.low)

    @property
    def half(self) -> np.ndarray:
        """Half of each knot's range, float64 [P]."""
        return (self.high - self.low) / 2

    @property
    def centre(self) -> np.ndarray:
        """The middle of each knot's range, float64 [P]."""
        return (self.high + self.low) / 2

    def clipped(self, knots: np.ndarray) -> np.ndarray:
        """Knots [..., P] within the bounds."""
        return np.clip(knots, self.low, self.high)

    def straight(self, knots: np.ndarray) -> np.ndarray:
        """Knots [N, P] that hold each dimension's first one over the whole horizon."""
        first = [np.repeat(knots[:, part[:1]], len(part), axis=1) for part in self._parts]
        return np.concatenate(first, axis=1)

    def actions(self, knots: np.ndarray) -> np.ndarray:
        """Actions float32 [N, H, A] of knots [N, P], within the bounds as float32 has them."""
        columns = [knots[:, part] @ weights.T for part, weights in zip(self._parts, self._maps, strict=True)]
        actions = np.clip(np.stack(columns, axis=-1), self._low, self._high)
        return actions.astype(np.float32)

    def knots(self, actions: np.ndarray, where: str) -> np.ndarray:
        """Knots [N, P] whose actions come nearest to actions [N, h, A]: the last one is repeated, or the rest cut off.

        Args:
            where: the argument that they are, for the error.

        Raises:
            UserError: another shape, none, or not finite.
        """
        whole = self.whole(actions, where)
        parts = [whole[..., dim] @ back.T for dim, back in enumerate(self._back)]
        return self.clipped(np.concatenate(parts, axis=1))

    def whole(self, actions: np.ndarray, where: str) -> np.ndarray:
        """Actions float64 [N, H, A] within the bounds, of actions [N, h, A].

        Raises:
            UserError: as `knots`.
        """
        values, dims = np.asarray(actions, np.float64), len(self._maps)
        if values.ndim != 3 or values.shape[2] != dims or 0 in values.shape:
            raise UserError(
                f"are of shape {list(np.shape(actions))}, not {dims} wide, or there are none", where=where
            )
        if not np.isfinite(values).all():
            raise UserError("hold a number that is not finite", where=where)
        last = np.repeat(values[:, -1:], max(0, self._horizon - values.shape[1]), axis=1)
        return np.clip(np.concatenate([values, last], axis=1)[:, : self._horizon], self._low, self._high)

    def roughness(self, actions: np.ndarray) -> np.ndarray:
        """Mean squared change from one action to the next, in halves of each range: float64 [N] of [N, H, A]."""
        half = (self._high - self._low) / 2
        scaled = np.asarray(actions, np.float64) / np.where(half > 0, half, 1.0)
        changes = np.diff(scaled, axis=1)
        return (changes**2).mean(axis=(1, 2)) if changes.shape[1] else np.zeros(len(scaled))


def _interpolation(horizon: int, knots: int) -> np.ndarray:
    """Weights float64 [H, K]: row t is what the knots count for action t."""
    if knots == 1:
        return np.ones((horizon, 1))
    places = np.linspace(0, knots - 1, horizon)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(knots)))
