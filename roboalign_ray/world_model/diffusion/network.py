"""The denoiser: a small U-Net over pixels folded into channels, one for all views, that attends across them.

    noisy clip, history, reference ─fold 4×4─► U-Net (FiLM: time, actions, history noise, view) ─unfold─► per pixel:
        motion of the newest frame (2), a newly drawn colour (3), weights of: moved newest frame | reference | drawn

The clean frame is the weighted sum of the three. There is no path from the noisy clip to the output but through the
network: a skip leaks noise into still areas, and over a rollout it piles up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.diffusion import DenoiserConfig

_GROUPS = 8
_PER_PIXEL = 2 + 3  # motion, drawn colour


@dataclass(frozen=True)
class Seen:
    """What `Denoiser.seen` makes of known frames.

    Attributes:
        features: [B * V, C, H / patch, W / patch].
        newest, reference: frames [B * V, 3, H, W].
    """

    features: Tensor
    newest: Tensor
    reference: Tensor

    def taken(self, rows: Tensor, views: int) -> Seen:
        """That of some rows, int [k] of their numbers, each of so many views."""
        return Seen(*(part.unflatten(0, (-1, views))[rows].flatten(0, 1) for part in vars(self).values()))

    @staticmethod
    def joined(parts: Sequence[Seen]) -> Seen:
        """Several behind each other."""
        return Seen(*(torch.cat(part) for part in zip(*(vars(seen).values() for seen in parts), strict=True)))


class Denoiser(nn.Module):
    """Predicts the clean next clip.

    Args:
        config: sizes.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        frames = config.clip_frames + len(config.history) + int(config.reference)
        folded, first = 3 * config.patch**2, config.channels[0]
        width = 4 * first
        self.sources = 2 + int(config.reference)
        self.embed = _Conditioning(config, width)
        self.enter = Entrance(config.clip_frames * folded, frames * folded, first)
        levels = len(config.channels)
        attends = [level >= levels - config.attention_levels for level in range(levels)]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        before = first
        for level, channels in enumerate(config.channels):
            self.down.append(_Level(before, channels, config, width, attends[level]))
            if level + 1 < levels:
                self.shrink.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            before = channels
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels - 1)):
            channels = config.channels[level]
            self.grow.append(nn.Conv2d(before, channels, 1))
            self.up.append(_Level(2 * channels, channels, config, width, attends[level]))
            before = channels
        self.leave = nn.Sequential(nn.GroupNorm(_GROUPS, before), nn.SiLU())
        pixels = config.clip_frames * (_PER_PIXEL + self.sources) * config.patch**2
        self.head = nn.Conv2d(before, pixels, 3, padding=1)
        for weights in self.head.parameters():
            nn.init.normal_(weights, std=1e-3)

    def forward(
        self,
        state: Tensor,
        time: Tensor,
        history: Tensor,
        reference: Tensor,
        actions: Tensor,
        level: Tensor,
    ) -> Tensor:
        """Predict.

        Args:
            state: noisy clip [B, V, n, 3, H, W].
            time: [B], 1 is noise alone.
            history: known frames [B, V, h, 3, H, W] in [-1, 1], as `config.history` lists them, newest first.
            reference: [B, V, 3, H, W] in [-1, 1]; ignored where the configuration has none.
            actions: [B, past_actions + n, A], normalised.
            level: [B], standard deviation of the noise on the history.

        Returns:
            clean clip [B, V, n, 3, H, W] in [-1, 1].
        """
        return self.denoise(state, time, self.seen(history, reference), actions, level)

    def seen(self, history: Tensor, reference: Tensor) -> Seen:
        """What the network makes of the known frames, whatever the noisy clip is; arguments as for `forward`.

        It is the known frames' part of the first convolution, whose input they mostly are. Denoising steps share it,
        and so do the samples of a group.
        """
        frames = torch.cat([history, reference.unsqueeze(2)], dim=2) if self.config.reference else history
        pixels = F.pixel_unshuffle(frames.flatten(0, 1).flatten(1, 2), self.config.patch)
        return Seen(self.enter.known(pixels), history[:, :, 0].flatten(0, 1), reference.flatten(0, 1))

    def denoise(self, state: Tensor, time: Tensor, seen: Seen, actions: Tensor, level: Tensor) -> Tensor:
        """As `forward`, with the known frames as `seen` gives them."""
        batch, views = state.shape[:2]
        pixels = F.pixel_unshuffle(state.flatten(0, 1).flatten(1, 2), self.config.patch)
        x = self.enter.state(pixels) + seen.features
        condition = self.embed(time, actions, level)
        skips = []
        for number, down in enumerate(self.down):
            x = down(x, condition, views)
            if number < len(self.shrink):
                skips.append(x)
                x = self.shrink[number](x)
        for grow, up in zip(self.grow, self.up, strict=True):
            skip = skips.pop()
            x = F.interpolate(grow(x), size=skip.shape[-2:], mode="nearest")
            x = up(torch.cat([x, skip], dim=1), condition, views)
        drawn = F.pixel_shuffle(self.head(self.leave(x)), self.config.patch)
        return self._composed(drawn, seen.newest, seen.reference).unflatten(0, (batch, views))

    def _composed(self, drawn: Tensor, newest: Tensor, reference: Tensor) -> Tensor:
        """Frames [N, n, 3, H, W] from the head's planes [N, n * planes, H, W] and frames [N, 3, H, W]."""
        clip = self.config.clip_frames
        planes = drawn.unflatten(1, (clip, -1))
        motion, colour, weights = planes.split([2, 3, self.sources], dim=2)
        moved = _warp(newest, motion.tanh() * self.config.largest_motion)
        # The first weight starts ahead: an untrained network copies the newest frame.
        first = torch.zeros(self.sources, device=drawn.device, dtype=drawn.dtype)
        first[0] = 2.0
        shares = (weights + first.view(1, 1, -1, 1, 1)).softmax(dim=2).unsqueeze(3)
        parts = [moved, colour.tanh()]
        if self.config.reference:
            parts.append(reference.unsqueeze(1).expand_as(moved))
        return (shares * torch.stack(parts, dim=2)).sum(dim=2)


class Entrance(nn.Conv2d):
    """The first convolution, in two parts that add up: of the noisy clip, and of the known frames.

    Args:
        clip: channels of the noisy clip, which come first.
        channels, out: of the whole convolution.
    """

    def __init__(self, clip: int, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)
        self.clip = clip

    def state(self, pixels: Tensor) -> Tensor:
        """The noisy clip's part [N, out, H, W], with the bias."""
        return F.conv2d(pixels, self.weight[:, : self.clip], self.bias, padding=1)

    def known(self, pixels: Tensor) -> Tensor:
        """The known frames' part [N, out, H, W]."""
        return F.conv2d(pixels, self.weight[:, self.clip :], padding=1)


class _Conditioning(nn.Module):
    """Time, actions, history noise and view as one vector per view."""

    def __init__(self, config: DenoiserConfig, width: int) -> None:
        super().__init__()
        actions = (config.past_actions + config.clip_frames) * config.action_dims
        self.time = nn.Sequential(nn.Linear(width // 4, width), nn.SiLU(), nn.Linear(width, width))
        self.actions = nn.Sequential(nn.Linear(actions, width), nn.SiLU(), nn.Linear(width, width))
        self.level = nn.Linear(width // 4, width)
        self.view = nn.Embedding(config.views, width)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, time: Tensor, actions: Tensor, level: Tensor) -> Tensor:
        """Float [B * V, width]; arguments as in `Denoiser`."""
        size = self.level.in_features
        known = (
            self.time(_waves(time, size))
            + self.level(_waves(10 * level, size))
            + self.actions(actions.flatten(1))
        )
        return self.out((known.unsqueeze(1) + self.view.weight).flatten(0, 1))


def _waves(values: Tensor, size: int) -> Tensor:
    """Sines and cosines [B, size] of values [B] around 0 to 1."""
    half = size // 2
    frequencies = torch.exp(torch.linspace(0, math.log(100.0), half, device=values.device))
    angles = 2 * math.pi * values.unsqueeze(1) * frequencies / 4
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Level(nn.Module):
    """Residual blocks of one size, each followed by attention where the level has it."""

    def __init__(self, before: int, channels: int, config: DenoiserConfig, width: int, attends: bool) -> None:
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(), nn.ModuleList()
        for number in range(config.blocks):
            self.blocks.append(_Block(before if number == 0 else channels, channels, width))
            if attends:
                self.attention.append(_Attention(channels, config.heads))

    def forward(self, x: Tensor, condition: Tensor, views: int) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x, condition)
            if self.attention:
                x = self.attention[number](x, views)
        return x


class _Block(nn.Module):
    """A residual block whose second normalisation is scaled and shifted by the condition (FiLM)."""

    def __init__(self, before: int, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(_groups(before), before), nn.SiLU(), nn.Conv2d(before, channels, 3, padding=1)
        )
        self.film = nn.Linear(width, 2 * channels)
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.pass_by = nn.Conv2d(before, channels, 1) if before != channels else nn.Identity()
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        inner = self.norm(self.first(x)) * (1 + scale) + shift
        return self.pass_by(x) + self.second(F.silu(inner))


class _Attention(nn.Module):
    """Self-attention over the positions of all views of a sample."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(_groups(channels), channels)
        self.to_qkv, self.back = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.back.weight)

    def forward(self, x: Tensor, views: int) -> Tensor:
        rows, channels, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).view(rows // views, views, 3, self.heads, channels // self.heads, -1)
        # [B, V, 3, heads, d, P] to three of [B, heads, V * P, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 5, 4).flatten(3, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.unflatten(2, (views, height * width)).permute(0, 2, 1, 4, 3)
        return x + self.back(mixed.reshape(rows, channels, height, width))


def _groups(channels: int) -> int:
    return math.gcd(_GROUPS, channels)


def _warp(frame: Tensor, motion: Tensor) -> Tensor:
    """Frames [N, n, 3, H, W]: each pixel from where `motion` [N, n, 2, H, W] (x, y in pixels) points in `frame`."""
    rows, clip, _, height, width = motion.shape
    ys = torch.arange(height, device=frame.device, dtype=frame.dtype)
    xs = torch.arange(width, device=frame.device, dtype=frame.dtype)
    x = (xs + motion[:, :, 0]) * (2 / max(1, width - 1)) - 1
    y = (ys[:, None] + motion[:, :, 1]) * (2 / max(1, height - 1)) - 1
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)
    source = frame.repeat_interleave(clip, dim=0)
    warped = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return warped.unflatten(0, (rows, clip))
