"""One pre-training step of the diffusion world model: predict each window clip by clip. Knows nothing of Ray.

    window    real history │ clip 1 │ clip 2 │ clip 3 │ …       every clip is a training sample
    half      real frames  ─► 1,  real frames ─► 2,  real frames ─► 3 …      any time, history a little noisy
    half      real frames  ─► 1,  own clip 1  ─► 2,  own clips   ─► 3 …      noise alone, own clips as history

A model that sees only real history meets frames in a rollout that it has never seen, its own, and drifts. In the second
half each prediction becomes history of the next one without a gradient, so own histories cost no extra pass. Their
length grows while the model learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from roboalign_ray.config.diffusion import DiffusionConfig, DiffusionTrainingConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer, decayed_parameters
from roboalign_ray.metrics.perceptual import PerceptualDistance
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.conditioning import Inputs, clip_of, clip_to_bytes, inputs_of
from roboalign_ray.world_model.diffusion.denoising import predict_clip, residual_of
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.noise_schedule import loss_weight, noisy

_COSINE_FLOOR = 0.05
_FIRST_AS_REFERENCE = 0.5


def own_clips(config: DiffusionTrainingConfig, step: int) -> int:
    """After how many clips an own history is replaced by real frames, at optimizer step `step`; 1 is at once."""
    done = step / config.steps
    if done < config.own_history_from:
        return 1
    growing = config.own_history_grown - config.own_history_from
    grown = min(1.0, (done - config.own_history_from) / growing) if growing else 1.0
    return max(1, round(1 + grown * (config.clips_per_window - 1)))


@dataclass(frozen=True)
class _Window:
    """A batch of windows on the device, and what was shown of it.

    Attributes:
        real: frames uint8 [B, m, V, H, W, 3]; the first `given` are known at the beginning.
        shown: the same with own predictions in place of some frames.
        reference: uint8 [B, V, H, W, 3].
        actions: float [B, m, A], physical.
        own: bool [B], rows with own histories.
    """

    real: Tensor
    shown: Tensor
    reference: Tensor
    actions: Tensor
    given: int
    own: Tensor


@dataclass(frozen=True)
class _Draws:
    """Generators of one step.

    Attributes:
        choices: of rows, times and levels, always on the CPU, so that they are the same on every device.
        noise: on the training's device: noise of a large batch takes a CPU longer than a GPU takes for the whole step.
    """

    choices: torch.Generator
    noise: torch.Generator


class DiffusionTrainer(AveragedTrainer[Denoiser]):
    """Trains a denoiser; `step` takes one batch of windows.

    All random draws of a step follow from (seed, rank, step), so a resumed training needs no generator's state.

    Args:
        network: the denoiser, or its distributed wrapper.
        config: noise, and training.
        scaling: of the actions.
        perceptual: LPIPS, or None where its weight is 0.
        seed, rank: of noise and times.
    """

    def __init__(
        self,
        network: nn.Module,
        config: DiffusionConfig,
        scaling: ActionScaling,
        perceptual: PerceptualDistance | None,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        training = config.training
        optimizer = torch.optim.AdamW(
            decayed_parameters(network, training.weight_decay), training.learning_rate, betas=(0.9, 0.99)
        )
        plain = cast(Denoiser, getattr(network, "module", network))
        super().__init__(network, plain, optimizer, ema_decay=training.ema_decay)
        self.config, self.scaling, self.perceptual = config, scaling, perceptual
        self.device, self._seed, self._rank = device, seed, rank

    def step(self, context: np.ndarray, frames: np.ndarray, actions: np.ndarray) -> dict[str, float]:
        """One optimizer step.

        Args:
            context: reference frames uint8 [B, V, H, W, 3].
            frames: uint8 [B, `DiffusionConfig.window_frames`, V, H, W, 3].
            actions: float [B, as many, A] in physical units; actions[:, t] leads from frame t to frame t + 1.

        Returns:
            loss, LPIPS, PSNR in dB of clips predicted from noise alone (on real and on own history), length of own
            histories in clips, gradient norm, learning rate.
        """
        training = self.config.training
        rate = self._begin(
            training.learning_rate,
            warmup=training.warmup,
            total=training.steps,
            schedule=training.schedule,
            floor=_COSINE_FLOOR,
        )
        draws = self._draws()
        window = self._window(context, frames, actions, draws.choices)
        length, clips = own_clips(training, self.steps_done), training.clips_per_window
        self.optimizer.zero_grad(set_to_none=True)
        figures = []
        for clip in range(clips):
            continued = window.own if (clip + 1) % length else torch.zeros_like(window.own)
            loss, found = self._clip(window, clip, continued, draws)
            (loss / clips).backward()
            figures.append(found)
        norm = self._advance(training.clip_norm)
        means = torch.stack(figures).nanmean(0).tolist()
        named = dict(zip(("loss", "lpips", "psnr", "psnr_own"), means, strict=True))
        return {**named, "own_clips": float(length), "grad_norm": norm, "learning_rate": rate}

    def _window(
        self, context: np.ndarray, frames: np.ndarray, actions: np.ndarray, draws: torch.Generator
    ) -> _Window:
        """The batch, with a history of 1 frame to as many as the network sees: a rollout begins with few.

        The reference of half of the windows is their first known frame, as it is in a rollout from one frame.
        """
        seen, training = self.config.denoiser.seen, self.config.training
        given = 1 + int(torch.randint(seen, (), generator=draws))
        real = torch.from_numpy(frames[:, seen - given :]).to(self.device)
        rows = len(real)
        own = torch.randperm(rows, generator=draws) < round(training.own_history * rows)
        first = (torch.rand(rows, generator=draws) < _FIRST_AS_REFERENCE).to(self.device)
        earlier = torch.from_numpy(context).to(self.device)
        return _Window(
            real=real,
            shown=real.clone(),
            reference=torch.where(first.view(-1, 1, 1, 1, 1), real[:, 0], earlier),
            actions=torch.from_numpy(actions[:, seen - given :]).to(self.device),
            given=given,
            own=own.to(self.device),
        )

    def _clip(self, window: _Window, number: int, continued: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
        """Train on one clip; loss, and figures [4].

        Args:
            number: of the clip.
            continued: bool [B], rows whose prediction becomes history of the next clip. Where none is, the next clip
                continues real frames.
        """
        size, scale = self.config.denoiser.clip_frames, self.config.noise.residual_scale
        known = window.given + number * size
        inputs = inputs_of(
            window.shown[:, :known],
            window.reference,
            window.actions[:, : known - 1 + size],
            self.config.denoiser,
            self.scaling,
        )
        drifted = (window.shown[:, :known] != window.real[:, :known]).flatten(1).any(1)
        inputs = self._noisy_history(inputs, ~window.own, draws)
        target = clip_of(window.real[:, known : known + size])
        time = self._times(continued, draws.choices)
        clean = residual_of(target, inputs, scale)
        state = noisy(clean, self._normal(clean, draws), time)
        device_type = torch.device(self.device).type
        with torch.autocast(
            device_type, torch.bfloat16, enabled=self.config.training.precision == "bfloat16"
        ):
            made = predict_clip(self.model, state, time, inputs).float()
        self._show(window, known, made.detach(), continued)
        return self._loss(made, target, time, drifted)

    def _show(self, window: _Window, known: int, made: Tensor, continued: Tensor) -> None:
        """Let predictions of `continued` rows be history; real frames again where no row is continued."""
        if not continued.any():
            window.shown.copy_(window.real)
            return
        size = self.config.denoiser.clip_frames
        window.shown[continued, known : known + size] = clip_to_bytes(made[continued])

    def _loss(self, made: Tensor, target: Tensor, time: Tensor, drifted: Tensor) -> tuple[Tensor, Tensor]:
        noise, training = self.config.noise, self.config.training
        error = (made - target).square().flatten(1).mean(1)
        loss = (loss_weight(time, noise.loss_weight_limit) * error).mean() / noise.residual_scale**2
        lpips = torch.zeros((), device=made.device)
        if self.perceptual is not None and training.perceptual_weight:
            pairs = [((clip + 1) / 2).flatten(0, 2) for clip in (made, target)]
            lpips = self.perceptual(*pairs).mean()
            loss = loss + training.perceptual_weight * lpips
        decibels = -10 * (error.detach() / 4).clamp_min(1e-10).log10()
        pure = time == 1
        by_history = [decibels[pure & ~drifted].mean(), decibels[pure & drifted].mean()]
        return loss, torch.stack([loss.detach(), lpips.detach(), *by_history])

    def _times(self, continued: Tensor, draws: torch.Generator) -> Tensor:
        """Times [B]: 1 for a fixed share of the rows and for `continued` ones, else uniform in (0, 1)."""
        rows = len(continued)
        pure = torch.randperm(rows, generator=draws) < round(self.config.noise.pure_share * rows)
        any_time = torch.rand(rows, generator=draws).clamp_min(1e-3)
        time = torch.where(pure, 1.0, any_time).to(self.device)
        return torch.where(continued, 1.0, time)

    def _noisy_history(self, inputs: Inputs, real: Tensor, draws: _Draws) -> Inputs:
        """Noise on the history of a share of the rows, never on own histories, whose errors are real ones."""
        noise, rows = self.config.noise, len(real)
        level = noise.history_noise * torch.rand(rows, generator=draws.choices)
        kept = torch.rand(rows, generator=draws.choices) >= noise.history_clean
        level = torch.where(kept.to(self.device) & real, level.to(self.device), 0.0)
        return inputs.with_noise(level, self._normal(inputs.history, draws)) if level.any() else inputs

    def _normal(self, like: Tensor, draws: _Draws) -> Tensor:
        return torch.randn(like.shape, generator=draws.noise, device=self.device)

    def _draws(self) -> _Draws:
        entropy = np.random.SeedSequence([self._seed, self._rank, self.steps_done])
        seed = int(entropy.generate_state(1, np.uint64)[0] >> 1)
        choices = torch.Generator().manual_seed(seed)
        if torch.device(self.device).type == "cpu":
            return _Draws(choices, choices)
        return _Draws(choices, torch.Generator(self.device).manual_seed(seed))
