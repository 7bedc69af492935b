"""One training step of the tokenizer, and the state that is saved to resume training. Independent of Ray."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from roboalign_ray.config import TokenizerTrainingConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer
from roboalign_ray.tokenizer.losses import (
    PatchDiscriminator,
    Perceptual,
    discriminator_loss,
    pair_frames,
    reconstruction_loss,
)
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer

_COSINE_FLOOR = 0.05


def to_unit_frames(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Convert uint8 [..., H, W, 3] to float [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).movedim(-1, -3).float().div_(255)


def code_usage(codes: Tensor, size: int) -> dict[str, float]:
    """Codebook usage of a batch: number of distinct codes, and perplexity (exp of the entropy)."""
    counts = torch.bincount(codes.reshape(-1), minlength=size).float()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return {"codes_used": float((counts > 0).sum()), "perplexity": float(entropy.exp())}


class TokenizerTrainer(AveragedTrainer[DualBranchTokenizer]):
    """Trains the tokenizer with its losses and an optional discriminator; `step` takes one batch.

    Args:
        tokenizer: the module to train, or its distributed wrapper.
        config: schedule and losses.
        perceptual: LPIPS, or None when no backbone is available.
        seed: seed of the choice of frames for LPIPS.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        config: TokenizerTrainingConfig,
        perceptual: Perceptual | None,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        optimizer = torch.optim.AdamW(
            tokenizer.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        plain = cast(DualBranchTokenizer, getattr(tokenizer, "module", tokenizer))
        super().__init__(tokenizer, plain, optimizer, ema_decay=config.ema_decay)
        self.config, self.perceptual, self.device = config, perceptual, device
        self.discriminator = PatchDiscriminator().to(device) if config.gan_weight > 0 else None
        self.discriminator_optimizer = (
            torch.optim.AdamW(self.discriminator.parameters(), config.learning_rate, betas=(0.5, 0.9))
            if self.discriminator is not None
            else None
        )
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, context: np.ndarray, frames: np.ndarray) -> dict[str, float]:
        """One optimizer step.

        Args:
            context: uint8 [B, H, W, 3].
            frames: uint8 [B, T, H, W, 3].

        Returns:
            losses, PSNR of both branches in dB, code usage per branch, gradient norm.
        """
        config = self.config
        context_BCHW, frames_BTCHW = (
            to_unit_frames(context, self.device),
            to_unit_frames(frames, self.device),
        )
        rate = self._begin(
            config.learning_rate,
            warmup=config.warmup,
            total=config.steps,
            schedule="cosine",
            floor=_COSINE_FLOOR,
        )
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            result = self.model(context_BCHW, frames_BTCHW)
        made, real = pair_frames(result, context_BCHW, frames_BTCHW)
        loss, parts = reconstruction_loss(
            made, real, config, self.perceptual, self.generator, contexts=len(context)
        )
        loss = loss + self._adversarial(made, real, parts)
        norm = self._descend(loss, config.clip_norm)
        return {"learning_rate": rate} | self._metrics(loss, parts, norm, made, real, result, len(context))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        adversary, its_optimizer = self.discriminator, self.discriminator_optimizer
        return {
            **super().state_dict(),
            "discriminator": adversary.state_dict() if adversary is not None else None,
            "discriminator_optimizer": its_optimizer.state_dict() if its_optimizer is not None else None,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        super().load_state_dict(state)
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.generator.set_state(state["generator"])

    def _adversarial(self, made: Tensor, real: Tensor, parts: dict[str, Tensor]) -> Tensor | float:
        """The generator's adversarial term, after one discriminator step; 0.0 before `gan_start`."""
        if (
            self.discriminator is None
            or self.discriminator_optimizer is None
            or self.steps_done < self.config.gan_start
        ):
            return 0.0
        loss = discriminator_loss(self.discriminator, made, real)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        parts["discriminator"] = loss.detach()
        return -self.config.gan_weight * self.discriminator(made).mean()

    def _metrics(self, loss, parts, norm, made, real, result, contexts) -> dict[str, float]:
        error = (made.detach().clamp(0, 1) - real).square().flatten(1).mean(1)
        psnr = -10 * error.clamp_min(1e-10).log10()
        metrics = {"loss": float(loss.detach()), "grad_norm": norm}
        metrics |= {name: float(value) for name, value in parts.items()}
        metrics |= {
            "psnr_context": float(psnr[:contexts].mean()),
            "psnr_dynamics": float(psnr[contexts:].mean()),
        }
        for branch, codes in (("context", result.context_codes), ("dynamics", result.dynamics_codes)):
            usage = code_usage(codes, self.plain.config.codes)
            metrics |= {f"{branch}_{name}": value for name, value in usage.items()}
        return metrics
