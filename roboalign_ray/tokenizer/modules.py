"""Building blocks of the tokenizer: residual convolutions, multi-scale trunks, and the fusion with context features.

The dynamics branch reads the context through `ContextFusion` at every scale: features at the same position are
concatenated (for content that does not move), and at small scales cross-attention reads other positions (for content
that moved).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config import TokenizerConfig

_HEAD_CHANNELS = 32


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=max(1, channels // 16), num_channels=channels)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input. [N, C, h, w] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(channels), _norm(channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(h)))


class ContextFusion(nn.Module):
    """Adds context features [N, C, h, w] to dynamics features [N*T, C, h, w] of the same scale.

    Args:
        channels: C.
        attend: also attend to the context features of other positions (position embeddings are learned per cell).
        size: (h, w).
    """

    def __init__(self, channels: int, size: tuple[int, int], *, attend: bool) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.attend = attend
        if attend:
            self.heads = max(1, channels // _HEAD_CHANNELS)
            self.position = nn.Parameter(torch.randn(1, channels, *size) * 0.02)
            self.norm, self.context_norm = _norm(channels), _norm(channels)
            self.query = nn.Conv2d(channels, channels, 1)
            self.key_value = nn.Conv2d(channels, 2 * channels, 1)
            self.out = nn.Conv2d(channels, channels, 1)
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        frames = x.shape[0] // context.shape[0]
        if self.attend:
            x = x + self._attention(x, context, frames)
        here = context.repeat_interleave(frames, dim=0) if frames > 1 else context
        return x + self.mix(torch.cat([x, here], dim=1))

    def _attention(self, x: Tensor, context: Tensor, frames: int) -> Tensor:
        n, c, h, w = context.shape
        query = self.query(self.norm(x) + self.position)
        key, value = self.key_value(self.context_norm(context) + self.position).chunk(2, dim=1)
        # All frames of a window query the same keys, so they are concatenated on the query axis.
        query = query.reshape(n, frames, self.heads, c // self.heads, h * w)
        query = query.permute(0, 2, 1, 4, 3).reshape(n, self.heads, frames * h * w, -1)
        key = key.reshape(n, self.heads, -1, h * w).transpose(2, 3)
        value = value.reshape(n, self.heads, -1, h * w).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.reshape(n, self.heads, frames, h * w, -1).permute(0, 2, 1, 4, 3)
        return self.out(mixed.reshape(n * frames, c, h, w))


def _scales(config: TokenizerConfig) -> list[tuple[int, tuple[int, int]]]:
    """(channels, (h, w)) of each scale, finest first."""
    return [
        (channels, (config.height // (config.stem << i), config.width // (config.stem << i)))
        for i, channels in enumerate(config.channels)
    ]


def _positions(config: TokenizerConfig) -> nn.ParameterList:
    """Learned position features per scale. With a fixed camera, the background then needs no codes."""
    return nn.ParameterList(torch.randn(1, channels, *size) * 0.02 for channels, size in _scales(config))


def _fusions(config: TokenizerConfig) -> nn.ModuleList:
    return nn.ModuleList(
        ContextFusion(channels, size, attend=max(size) <= config.attention_max_size)
        for channels, size in _scales(config)
    )


class Encoder(nn.Module):
    """Encodes frames [N, 3, H, W] in [-1, 1] to a latent [N, latent, rows, columns].

    Args:
        fused: whether this is the dynamics branch, which reads context features.
    """

    def __init__(self, config: TokenizerConfig, *, fused: bool) -> None:
        super().__init__()
        widths = config.channels
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(config.stem), nn.Conv2d(3 * config.stem**2, widths[0], 3, padding=1)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(config.blocks))) for width in widths
        )
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.positions = _positions(config)
        self.fusions = _fusions(config) if fused else None
        self.head = nn.Sequential(_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], config.latent, 1))

    def forward(self, frames: Tensor, context: list[Tensor] | None = None) -> Tensor:
        x = self.stem(frames)
        for i, blocks in enumerate(self.blocks):
            if i > 0:
                x = self.down[i - 1](x)
            x = x + self.positions[i]
            if self.fusions is not None and context is not None:
                x = self.fusions[i](x, context[i])
            x = blocks(x)
        return self.head(x)


class Decoder(nn.Module):
    """Decodes a latent [N, latent, rows, columns] to features per scale and raw frames [N, 3, H, W] in [-1, 1]."""

    def __init__(self, config: TokenizerConfig, *, fused: bool) -> None:
        super().__init__()
        widths = config.channels
        self.stem = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(config.blocks))) for width in widths
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2)) for a, b in itertools.pairwise(widths)
        )
        self.positions = _positions(config)
        self.fusions = _fusions(config) if fused else None
        self.head = nn.Sequential(
            _norm(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], 3 * config.stem**2, 3, padding=1),
            nn.PixelShuffle(config.stem),
        )

    def trunk(self, latent: Tensor, context: list[Tensor] | None = None) -> list[Tensor]:
        """Features per scale, finest first, each [N, C_i, h_i, w_i]."""
        features: list[Tensor] = []
        x = self.stem(latent)
        for i in reversed(range(len(self.blocks))):
            x = x + self.positions[i]
            if self.fusions is not None and context is not None:
                x = self.fusions[i](x, context[i])
            x = self.blocks[i](x)
            features.insert(0, x)
            if i > 0:
                x = self.up[i - 1](x)
        return features

    def render(self, features: list[Tensor]) -> Tensor:
        """Frames from the finest features."""
        return self.head(features[0])
