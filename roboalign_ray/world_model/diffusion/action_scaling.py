"""Actions in physical units to the numbers that the denoiser sees: percentiles of the action card become -1 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import UserError

_LIMIT = 1.5  # an action farther outside the percentiles counts as this far
_SMALLEST_RANGE = 1e-9


@dataclass(frozen=True)
class ActionScaling:
    """Per dimension the value that becomes -1 and the one that becomes 1.

    Attributes:
        low, high: A numbers each, the card's p01 and p99. A dimension whose two numbers are equal becomes 0.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def from_card(cls, card: ActionCard, where: str = "action card") -> ActionScaling:
        """The scaling by a card's percentiles.

        Raises:
            UserError: the card has no statistics.
        """
        if card.statistics is None:
            raise UserError("has no statistics, which scale the actions", where=where)
        return cls(card.statistics.p01, card.statistics.p99)

    @property
    def dims(self) -> int:
        """Action dimensions A."""
        return len(self.low)

    def __call__(self, actions: Tensor) -> Tensor:
        """Float [..., A] in [-1.5, 1.5] of actions [..., A] in the units of the card."""
        low, high = (torch.tensor(values, dtype=torch.float64) for values in (self.low, self.high))
        width = high - low
        constant = width < _SMALLEST_RANGE
        scale = torch.where(constant, 0.0, 2 / torch.where(constant, 1.0, width))
        middle = (low + high) / 2
        kept = actions.double() - middle.to(actions.device)
        return (kept * scale.to(actions.device)).clamp(-_LIMIT, _LIMIT).float()
