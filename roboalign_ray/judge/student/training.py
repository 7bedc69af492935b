"""One training step of the student, and what must be kept to go on after a stop. Knows nothing of Ray.

The loss is a Huber loss on scores normalised to [0, 1], weighted by dimension (RoboAlign-R1, arXiv 2605.03821; weights
and delta are unpublished, ours stand in `DistillationConfig`). A Gaussian likelihood beside it teaches the variance
head (Nix and Weigend, 1994) without a say in the mean: residuals and features are detached, so an uncertain student
cannot excuse itself from a pair it finds hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.judge import DistillationConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer, decayed_parameters
from roboalign_ray.judge.rubric import denormalise, names, normalise
from roboalign_ray.judge.student.model import Student

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


class StudentTrainer(AveragedTrainer[Student]):
    """Adds the loss on scores; `step` takes one batch of judged clips.

    Args:
        model: the `Student`, or its distributed wrapper; what is frozen in it (`Student.freeze`) stays so.
        config: schedule and loss.
        keep_statistics: normalise by what batch normalisation has seen before and leave that as it is: for further
            training on a few batches of another mixture, which would move it away from what the student was made for.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DistillationConfig,
        *,
        device: torch.device | str = "cpu",
        keep_statistics: bool = False,
    ) -> None:
        optimizer = torch.optim.AdamW(
            decayed_parameters(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.98)
        )
        plain = cast(Student, getattr(model, "module", model))
        super().__init__(model, plain, optimizer, ema_decay=config.ema_decay)
        self.config, self.device = config, device
        self.weights = torch.tensor(config.dimension_weights, device=device)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._kept = [norm for norm in norms if keep_statistics or not norm.weight.requires_grad]

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
        rate = self._begin(
            config.learning_rate,
            warmup=config.warmup,
            total=config.steps,
            schedule="cosine",
            floor=_COSINE_FLOOR,
        )
        for kept in self._kept:
            kept.eval()
        target = torch.from_numpy(normalise(np.asarray(scores, np.float32))).to(self.device)
        loss, parts, predicted = self._loss(clips, instructions, target)
        norm = self._descend(loss, config.clip_norm)
        points = denormalise((predicted - target).abs().mean(0).cpu().numpy())
        return {
            "loss": float(loss.detach()),
            **parts,
            "grad_norm": norm,
            "learning_rate": rate,
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
