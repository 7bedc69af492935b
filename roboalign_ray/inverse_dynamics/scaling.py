"""Actions between physical units and the model's: mean and standard deviation of the action card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_kinds import ActionKind
from roboalign_ray.foundation.failures import UserError

RATES: tuple[ActionKind, ...] = ("delta", "delta_angle", "delta_rotation", "velocity")  # 0 means no motion
_SMALLEST_DEVIATION = 1e-9


@dataclass(frozen=True)
class ActionNormaliser:
    """Per dimension the mean and the standard deviation of the training actions.

    Attributes:
        mean, std: float64 [A], in the units of the card. A dimension that never changes has the deviation 1.
        varies: bool [A], whether the dimension ever changes.
        rates: bool [A], whether 0 means that nothing moves.
    """

    mean: np.ndarray
    std: np.ndarray
    varies: np.ndarray
    rates: np.ndarray

    @classmethod
    def from_card(cls, card: ActionCard, where: str = "action card") -> ActionNormaliser:
        """By a card's statistics.

        Raises:
            UserError: the card has no statistics.
        """
        if card.statistics is None:
            raise UserError(
                "has no statistics, which scale the actions",
                where=where,
                remedy="train on a store whose train split holds episodes",
            )
        std = np.asarray(card.statistics.std, np.float64)
        varies = std > _SMALLEST_DEVIATION
        rates = np.array([kind in RATES for kind in card.kinds])
        return cls(np.asarray(card.statistics.mean, np.float64), np.where(varies, std, 1.0), varies, rates)

    @property
    def dims(self) -> int:
        """Action dimensions A."""
        return len(self.mean)

    @property
    def still(self) -> np.ndarray:
        """Float64 [A]: no motion in the model's units, of dimensions that are rates; 0 for the others."""
        return np.where(self.rates, -self.mean / self.std, 0.0)

    def to_model(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in physical units to float64 of mean 0 and deviation 1."""
        return (np.asarray(actions, np.float64) - self.mean) / self.std

    def to_physical(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `to_model`; a dimension that never changes has its only value."""
        return np.where(self.varies, np.asarray(values, np.float64), 0.0) * self.std + self.mean
