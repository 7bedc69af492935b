"""Reconstruction losses of the tokenizer: L1, perceptual distance, and an optional adversarial loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from roboalign_ray.config import TokenizerTrainingConfig
from roboalign_ray.tokenizer.tokenizer import Reconstruction

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""(images, references), each [N, 3, H, W] in [0, 1], to distances [N]."""


class PatchDiscriminator(nn.Module):
    """Patch discriminator: frames [N, 3, H, W] in [0, 1] to logits [N, 1, h, w], one per overlapping patch."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, layers):
            wider = width * 2**i
            stack += [
                nn.Conv2d(channels, wider, 4, stride=2, padding=1),
                nn.GroupNorm(8, wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        self.stack = nn.Sequential(*stack, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, frames: Tensor) -> Tensor:
        return self.stack(frames * 2 - 1)


def pair_frames(result: Reconstruction, context_BCHW: Tensor, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
    """All reconstructed frames and their references, contexts first, [N, 3, H, W] float32."""
    made = torch.cat([result.context, rearrange(result.dynamics, "b t c h w -> (b t) c h w")]).float()
    real = torch.cat([context_BCHW, rearrange(frames_BTCHW, "b t c h w -> (b t) c h w")])
    return made, real


def reconstruction_loss(
    made: Tensor,
    real: Tensor,
    config: TokenizerTrainingConfig,
    perceptual: Perceptual | None,
    generator: torch.Generator,
    *,
    contexts: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 plus weighted LPIPS on a random choice of `perceptual_images` frames.

    Args:
        made, real: [N, 3, H, W] in [0, 1], the context frames first.
        contexts: number of context frames; they have the weight `context_share` in L1.
        generator: draws the frames that LPIPS sees.

    Returns:
        the loss and its parts.
    """
    error = (made - real).abs()
    share = config.context_share
    l1 = share * error[:contexts].mean() + (1 - share) * error[contexts:].mean()
    parts = {"l1": l1.detach()}
    if perceptual is None or config.perceptual_weight == 0:
        return l1, parts
    chosen = torch.randperm(len(made), generator=generator)[: config.perceptual_images].to(made.device)
    distance = perceptual(made[chosen].clamp(0, 1), real[chosen]).mean()
    parts["lpips"] = distance.detach()
    return l1 + config.perceptual_weight * distance, parts


def discriminator_loss(discriminator: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """Hinge loss."""
    return F.relu(1 - discriminator(real)).mean() + F.relu(1 + discriminator(made.detach())).mean()
