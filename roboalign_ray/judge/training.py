"""One training step of the student, and what must be kept to go on after a stop. Knows nothing of Ray.

The loss is a Huber loss on scores normalised to [0, 1], weighted by dimension (RoboAlign-R1, arXiv 2605.03821; weights
and delta are unpublished, ours stand in `DistillationConfig`). A Gaussian likelihood beside it teaches the variance
head (Nix and Weigend, 1994) without a say in the mean: its residuals are detached, so an uncertain student cannot
excuse itself from a pair it finds hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.judge import DistillationConfig
from roboalign_ray.foundation.optimisation import (
    decayed_parameters,
    learning_rate_factor,
    set_learning_rate,
    weight_average,
)
from roboalign_ray.judge.rubric import denormalise, names, normalise
from roboalign_ray.judge.student import Student

_COSINE_FLOOR = 0.05


def weighted_huber(predicted: Tensor, target: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Mean over the batch of sum_k w_k Huber(predicted_k - target_k) / sum_k w_k; inputs [B, 6], weights [6].

    Huber(r) = r^2 / 2 where |r| <= delta, delta * (|r| - delta / 2) beyond.
    """
    losses = F.huber_loss(predicted, target, reduction="none", delta=delta)
    return (losses * weights).sum(-1).mean() / weights.sum()


def gaussian_nll(predicted: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Mean of (log s^2 + r^2 / s^2) / 2 with the residual r detached; inputs [B, 6]."""
    squared = (predicted - target).detach().square()
    return 0.5 * (log_variance + squared * (-log_variance).exp()).mean()


class StudentTrainer:
    """Holds student, optimizer and weight average; `step` takes one batch of judged clips.

    Args:
        model: the `Student`, or its distributed wrapper.
        config: schedule and loss.
    """

    def __init__(
        self, model: nn.Module, config: DistillationConfig, *, device: torch.device | str = "cpu"
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self.plain = cast(Student, getattr(model, "module", model))
        self.weights = torch.tensor(config.dimension_weights, device=device)
        self.optimizer = torch.optim.AdamW(
            decayed_parameters(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.98)
        )
        self.average = weight_average(self.plain, config.ema_decay)
        self.steps_done = 0

    def step(self, clips: np.ndarray, instructions: Sequence[str], scores: np.ndarray) -> dict[str, float]:
        """One optimizer step.

        Args:
            clips: uint8 [B, frames, K, 3, H, W] from `prepare_clips`.
            instructions: B sentences.
            scores: float [B, 6], rubric points.

        Returns:
            "loss", "huber", "nll", "grad_norm", "learning_rate", and "mae/<dimension>" in points.
        """
        config = self.config
        factor = learning_rate_factor(
            self.steps_done,
            warmup=config.warmup_steps,
            total=config.steps,
            schedule="cosine",
            floor=_COSINE_FLOOR,
        )
        set_learning_rate(self.optimizer, config.learning_rate * factor)
        self.model.train()
        target = torch.from_numpy(normalise(np.asarray(scores, np.float32))).to(self.device)
        loss, parts, predicted = self._loss(clips, instructions, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.plain)
        self.steps_done += 1
        points = denormalise((predicted - target).abs().mean(0).cpu().numpy())
        return {
            "loss": float(loss.detach()),
            **parts,
            "grad_norm": float(norm),
            "learning_rate": config.learning_rate * factor,
            **{f"mae/{name}": float(error) for name, error in zip(names(), points, strict=True)},
        }

    def _loss(
        self, clips: np.ndarray, instructions: Sequence[str], target: Tensor
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(clips)).to(self.device)
        tokens = self.plain.tokenize(instructions).to(self.device)
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            predicted, log_variance = self.model(pixels, tokens)
        predicted, log_variance = predicted.float(), log_variance.float()
        huber = weighted_huber(predicted, target, self.weights, self.config.huber_delta)
        # At weight 0 the term stays in the graph, so that a distributed wrapper finds a gradient for every parameter.
        nll = gaussian_nll(predicted, log_variance, target)
        parts = {"huber": float(huber.detach()), "nll": float(nll.detach())}
        return huber + self.config.variance_weight * nll, parts, predicted.detach()

    def result(self) -> Student:
        """The student to keep: the weight average where there is one, in evaluation mode."""
        if self.average is None or self.steps_done == 0:
            return self.plain.eval()
        return cast(Student, self.average.module).eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps_done = state["steps_done"]
