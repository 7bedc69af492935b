"""Learning-rate schedules, weight averaging, and the base class of trainers."""

from __future__ import annotations

import math
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Schedule = Literal["constant", "cosine"]
Kept = TypeVar("Kept", bound=nn.Module)


def learning_rate_factor(step: int, *, warmup: int, total: int, schedule: Schedule, floor: float) -> float:
    """Factor on the peak rate at `step` (0-based): linear warm-up, then constant or cosine decay to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def weight_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of the weights (buffers are copied), or None at decay 0.

    After n averaged steps the decay is at most (1 + n) / (10 + n). So the average after a short training run covers
    its last weights, not the untrained weights it started with.
    """
    if decay == 0:
        return None

    @torch.no_grad()
    def update(averages: Any, weights: Any, averaged: Tensor | int) -> None:
        kept = min(decay, (1 + int(averaged)) / (10 + int(averaged)))
        torch._foreach_lerp_(averages, weights, 1 - kept)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=False)


def decayed_parameters(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW groups: matrices decay, vectors (norms, biases) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class AveragedTrainer(Generic[Kept]):
    """A model, its optimizer, the average of its weights, and the number of steps done.

    Args:
        model: the module to train: the model to keep, or a wrapper around it (distributed, or with another forward
            pass).
        plain: the model to keep, without wrappers.
        optimizer: of the model's parameters.
        ema_decay: of the weight average; 0 keeps none.
    """

    def __init__(
        self, model: nn.Module, plain: Kept, optimizer: torch.optim.Optimizer, *, ema_decay: float
    ) -> None:
        self.model, self.plain, self.optimizer = model, plain, optimizer
        self.average = weight_average(plain, ema_decay)
        self.steps_done = 0

    def result(self) -> Kept:
        """The model to keep: the weight average where there is one, in evaluation mode."""
        if self.average is None or self.steps_done == 0:
            return self.plain.eval()
        return cast(Kept, self.average.module).eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps_done = state["steps_done"]

    def _begin(self, peak: float, *, warmup: int, total: int, schedule: Schedule, floor: float) -> float:
        """Switch to training mode and set this step's learning rate, which is returned.

        The arguments are those of `learning_rate_factor`.
        """
        rate = peak * learning_rate_factor(
            self.steps_done, warmup=warmup, total=total, schedule=schedule, floor=floor
        )
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        return rate

    def _descend(self, loss: Tensor, clip_norm: float) -> float:
        """Make one optimizer step. Return the gradient norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return self._advance(clip_norm)

    def _advance(self, clip_norm: float) -> float:
        """Make one optimizer step with the gradients that are there. Return their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.plain)
        self.steps_done += 1
        return float(norm)
