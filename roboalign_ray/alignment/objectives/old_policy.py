"""The old policy: an average of the trained weights, whose decay rises from update to update.

    old <- d old + (1 - d) trained,    d = min(last, first + growth * update)

With d = 0 the old policy is the trained one, and the mixtures of both say nothing: such schedules are refused. Weights
that do not move at all have the same effect, and end the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from roboalign_ray.config.alignment_diffusion import OldPolicyConfig
from roboalign_ray.foundation.failures import UserError


class OldPolicy:
    """The average, float32.

    Args:
        trained: weights to start from, by name; copied.
        config: the schedule.

    Attributes:
        weights: by name.
        updates: how often it was advanced.
    """

    def __init__(self, trained: Mapping[str, Tensor], config: OldPolicyConfig) -> None:
        self.config, self.updates, self._still = config, 0, 0
        self.weights = {name: value.detach().float().clone() for name, value in trained.items()}

    def decay(self) -> float:
        """Share of the old weights that the next `advance` keeps."""
        return min(self.config.last, self.config.first + self.config.growth * self.updates)

    @torch.no_grad()
    def advance(self, trained: Mapping[str, Tensor]) -> float:
        """Move towards the trained weights; the norm of their difference afterwards.

        Raises:
            UserError: that was exactly 0 as often in a row as `config.still_updates` allows.
        """
        kept, left = self.decay(), 0.0
        for name, old in self.weights.items():
            new = trained[name].detach().float()
            old += (1 - kept) * (new - old)  # equal weights stay equal to the last bit
            left += float((new - old).square().sum())
        self.updates += 1
        self._still = 0 if left else self._still + 1
        if self._still >= self.config.still_updates:
            raise UserError(
                f"the trained policy has been exactly the old one for {self._still} updates: nothing is learned",
                where="alignment",
                remedy="raise learning_rate, or look whether rewards differ within groups (reward_deviation)",
            )
        return left**0.5

    def state_dict(self) -> dict[str, Any]:
        """Weights and counts."""
        return {"weights": self.weights, "updates": self.updates, "still": self._still}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            ValueError: weights of other names or shapes.
        """
        given = state["weights"]
        if {n: v.shape for n, v in given.items()} != {n: v.shape for n, v in self.weights.items()}:
            raise ValueError("the old policy's weights are those of another model")
        for name, value in self.weights.items():
            value.copy_(given[name])
        self.updates, self._still = int(state["updates"]), int(state["still"])
