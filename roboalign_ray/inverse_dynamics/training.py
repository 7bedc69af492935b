"""One training step of the inverse dynamics model. Knows nothing of Ray.

    action        Huber loss of the mean, in standard deviations of the action
    uncertainty   negative log-likelihood of a Laplace distribution around the mean, which gets no gradient from it

The two losses are apart so that the uncertainty cannot excuse dimensions that are hard to read. EVA trains by squared
error; the Huber loss is ours, because the actions of real episodes have outliers.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roboalign_ray.config.inverse_dynamics import InverseTrainingConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer, decayed_parameters
from roboalign_ray.inverse_dynamics.network import InverseDynamics
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser

_COSINE_FLOOR = 0.05
_LEAST_NOISE = 0.6  # share of noise in a spoiled sample


class InverseTrainer(AveragedTrainer[InverseDynamics]):
    """Trains an inverse dynamics model; `step` takes one batch of windows.

    All random draws of a step follow from (seed, rank, step), so a resumed training needs no generator's state.

    Args:
        network: the model, or its distributed wrapper.
        config: training.
        normaliser: of the actions.
        seed, rank: of the random changes of samples.
    """

    def __init__(
        self,
        network: nn.Module,
        config: InverseTrainingConfig,
        normaliser: ActionNormaliser,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        optimizer = torch.optim.AdamW(decayed_parameters(network, config.weight_decay), config.learning_rate)
        plain = cast(InverseDynamics, getattr(network, "module", network))
        super().__init__(network, plain, optimizer, ema_decay=config.ema_decay)
        self.config, self.normaliser, self.device = config, normaliser, device
        self._seed, self._rank = seed, rank

    def step(self, frames: np.ndarray, actions: np.ndarray) -> dict[str, float]:
        """One optimizer step.

        Args:
            frames: uint8 [B, 2k + 1, V, H, W, 3].
            actions: float [B, 2k + 1, A] in physical units; actions[:, t] leads from frame t to frame t + 1.

        Returns:
            loss, that of the actions, that of the uncertainty, R² of the batch, gradient norm, learning rate.
        """
        config = self.config
        rate = self._begin(
            config.learning_rate,
            warmup=config.warmup,
            total=config.steps,
            schedule=config.schedule,
            floor=_COSINE_FLOOR,
        )
        seed = np.random.SeedSequence([self._seed, self._rank, self.steps_done])
        draws = np.random.default_rng(seed)
        reach = self.plain.config.reach
        target, trained = self._target(actions[:, reach])
        order, still = _sample_order(len(frames), reach, config, draws)
        if still.any():
            target[still] = self.normaliser.still
            trained[still] &= self.normaliser.rates
        shown = np.take_along_axis(frames, order[:, :, None, None, None, None], axis=1)
        shown = _spoiled(shown, config.spoiled, draws)
        mean, log_scale = self.model(self._altered(to_network(shown, self.device), draws))
        losses = _losses(mean, log_scale, self._tensor(target), self._tensor(trained), config.huber_delta)
        loss = losses[0] + config.uncertainty_weight * losses[1]
        norm = self._descend(loss, config.clip_norm)
        values = (loss, *losses)
        named = dict(
            zip(("loss", "action_loss", "uncertainty_loss"), (float(v.detach()) for v in values), strict=True)
        )
        left = ((mean.detach().cpu().numpy() - target) ** 2)[trained].mean() if trained.any() else 0.0
        spread = max(float((target**2)[trained].mean()) if trained.any() else 1.0, 1e-9)
        return {**named, "r2": 1 - float(left) / spread, "grad_norm": norm, "learning_rate": rate}

    def _target(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised actions [B, A], and which of them are trained on: not those that never change."""
        target = self.normaliser.to_model(actions)
        return target, np.broadcast_to(self.normaliser.varies, target.shape).copy()

    def _altered(self, frames: Tensor, draws: np.random.Generator) -> Tensor:
        """Change brightness and contrast of each sample as a whole, and add noise to its pixels."""
        config, rows = self.config, len(frames)
        shift = 2 * draws.uniform(-config.brightness, config.brightness, rows)
        scale = 1 + draws.uniform(-config.contrast, config.contrast, rows)
        level = 2 * draws.uniform(0, config.pixel_noise, rows)
        shape = (rows, 1, 1, 1, 1, 1)
        factors = [self._tensor(values).view(shape) for values in (scale, shift, level)]
        noise = torch.randn(
            frames.shape, generator=torch.Generator().manual_seed(int(draws.integers(2**62)))
        ).to(frames.device)
        return (frames * factors[0] + factors[1] + factors[2] * noise).clamp(-1, 1)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self.device)


def to_network(frames: np.ndarray, device: torch.device | str) -> Tensor:
    """Frames uint8 [B, n, V, H, W, 3] to float [B, n, V, 3, H, W] in [-1, 1]."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).to(device).movedim(-1, -3)
    return pictures.float() / 127.5 - 1


def _sample_order(
    rows: int, reach: int, config: InverseTrainingConfig, draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which frame stands where in each sample [B, 2k + 1], and which samples are still [B]."""
    places = np.arange(-reach, reach + 1)
    cut = draws.random(rows) < config.edge
    first = np.where(cut, -draws.integers(0, reach + 1, rows), -reach)
    last = np.where(cut, draws.integers(1, reach + 1, rows), reach)
    still = draws.random(rows) < config.still
    first, last = np.where(still, 0, first), np.where(still, 0, last)
    return places.clip(first[:, None], last[:, None]) + reach, still


def _spoiled(frames: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """Frames of which a share of samples are mostly noise."""
    rows = np.flatnonzero(draws.random(len(frames)) < share)
    if not len(rows):
        return frames
    mixed = frames.copy()
    amount = draws.uniform(_LEAST_NOISE, 1, len(rows)).reshape(-1, 1, 1, 1, 1, 1)
    noise = draws.integers(0, 256, frames[rows].shape, dtype=np.uint8)
    mixed[rows] = np.rint((1 - amount) * frames[rows] + amount * noise).astype(np.uint8)
    return mixed


def _losses(
    mean: Tensor, log_scale: Tensor, target: Tensor, trained: Tensor, delta: float
) -> tuple[Tensor, Tensor]:
    """Losses of the action and of the uncertainty, means over what is trained on."""
    count = trained.sum().clamp(min=1)
    action = (F.huber_loss(mean, target, reduction="none", delta=delta) * trained).sum() / count
    error = (mean.detach() - target).abs()
    likelihood = ((error * (-log_scale).exp() + log_scale) * trained).sum() / count
    return action, likelihood
