"""Training of the progress network, and its errors on held-out start states. Knows nothing of Ray."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.agent import ProgressConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer, decayed_parameters
from roboalign_ray.planning.progress.card import TaskError
from roboalign_ray.planning.progress.frames import LabelledFrames
from roboalign_ray.planning.progress.network import UNIT_M, ProgressNetwork, prepared

_FLOOR = 0.02
_DELTA_M = 0.05  # errors beyond count linearly: a hand far away need not be known to the centimetre


class ProgressTrainer(AveragedTrainer[ProgressNetwork]):
    """A Huber loss on both distances.

    Args:
        model: the network, or its distributed wrapper.
        config: schedule, loss and augmentation.
        device: where it runs.
        seed: of the augmentation.
    """

    def __init__(
        self, model: nn.Module, config: ProgressConfig, *, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        optimizer = torch.optim.AdamW(
            decayed_parameters(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.99)
        )
        plain = cast(ProgressNetwork, getattr(model, "module", model))
        super().__init__(model, plain, optimizer, ema_decay=config.ema_decay)
        self.config, self.device, self._seed = config, device, seed
        weights = torch.tensor([config.object_weight, config.hand_weight], device=device)
        self._weights = weights / weights.sum()

    def step(self, frames: np.ndarray, distances: np.ndarray, task: np.ndarray) -> dict[str, float]:
        """One optimizer step on a batch of `FrameBatches`.

        Returns:
            "loss", "object_target_cm", "hand_object_cm", "grad_norm", "learning_rate".
        """
        config = self.config
        rate = self._begin(
            config.learning_rate, warmup=config.warmup, total=config.steps, schedule="cosine", floor=_FLOOR
        )
        pixels = self._augmented(prepared(torch.from_numpy(frames).to(self.device)))
        target = torch.from_numpy(distances).to(self.device) / UNIT_M
        predicted = self.model(pixels, torch.from_numpy(task).to(self.device))
        losses = F.huber_loss(predicted, target, reduction="none", delta=_DELTA_M / UNIT_M)
        loss = (losses * self._weights).sum(-1).mean()
        norm = self._descend(loss, config.clip_norm)
        errors = 100 * UNIT_M * (predicted.detach() - target).abs().mean(0).cpu().numpy()
        return {
            "loss": float(loss.detach()),
            "object_target_cm": float(errors[0]),
            "hand_object_cm": float(errors[1]),
            "grad_norm": norm,
            "learning_rate": rate,
        }

    def _augmented(self, pixels: Tensor) -> Tensor:
        """Less sharp and noisier pictures, as a world model predicts them; nothing is moved."""
        draws = torch.Generator().manual_seed(self._seed * 1_000_003 + self.steps_done)
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        chosen = torch.rand(len(pixels), 1, 1, 1, generator=draws).to(self.device) < self.config.blur
        noise = torch.randn(pixels.shape, generator=draws).to(self.device)
        return torch.where(chosen, blurred, pixels) + self.config.noise * noise


def held_out_errors(network: ProgressNetwork, data: LabelledFrames) -> dict[str, TaskError]:
    """Errors of every task that is in the data, of frames from start states that the training has not seen."""
    found = {}
    for number, task in enumerate(data.tasks):
        rows = np.flatnonzero(data.task == number)
        predicted = network.distances(data.frames[rows], task)
        found[task] = TaskError.of(predicted, data.distances[rows], len(np.unique(data.group[rows])))
    return found
