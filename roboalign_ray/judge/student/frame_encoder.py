"""What the student sees: each sampled frame as a few tokens, by convolutions that also look along time, or by a
pretrained vision encoder plugged in by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.judge.student.text_encoder import load_encoder

INTERVAL_CHANNELS = (
    10  # six of `clips.interval_pictures`, and the change right after the sampled frame before
)
_SHIFTED = 4  # one channel in so many comes from the frame before, and one from the frame after


class Patches(nn.Module):
    """Convolutions from a frame, its change since the frame before, and three energies, to one token per patch.

    Blur, grain, stillness and pace are sizes of differences whose signed mean is nothing: a network that sees signed
    values alone has to find rectification first, and takes many times as many clips to. The energies are roots of
    absolute differences: to the frame before, to the mean of the pixel's neighbours, and to the clip's first frame.
    Those of the frames in between (`clips.interval_pictures`) come beside them, as roots too.

    A gripper is a few pixels wide: whether it touches is found at the scales between square and patch, by layers that
    exchange channels with the frames before and after (temporal shift, arXiv 1811.08383).
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.tokens = (config.height // config.patch) * (config.width // config.patch)
        channels, side = 5 + 4 * config.motion + INTERVAL_CHANNELS * config.intervals, config.square
        self.stages = nn.ModuleList()
        for width in config.stem:
            self.stages.append(_Stage(channels, width, side, config.stem_blocks))
            channels, side = width, 2
        self.last = nn.Sequential(
            nn.Conv2d(channels, config.hidden, side, side, bias=False), nn.BatchNorm2d(config.hidden)
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, T, K, 3, H, W] in [0, 1] to tokens [B, T, N, W]."""
        length = clips.shape[1]
        frames = clips[:, :, 0].flatten(0, 1)
        first = clips[:, :1, 0].expand(-1, length, -1, -1, -1).flatten(0, 1)
        around = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)
        seen = [frames * 2 - 1, _energy(frames - around), _energy(frames - first)]
        if clips.shape[2] > 1:
            change = frames - clips[:, :, 1].flatten(0, 1)
            seen += [4 * change, _energy(change)]
        if clips.shape[2] > 2:
            before = torch.cat([clips[:, :1, 0], clips[:, :-1, 0]], dim=1)
            change = (clips[:, :, 2] - before).flatten(0, 1)
            seen += [_root(clips[:, :, 3:].flatten(2, 3).flatten(0, 1)), 4 * change, _energy(change)]
        x = torch.cat(seen, dim=1)
        for stage in self.stages:
            x = stage(x, length)
        return rearrange(self.last(x), "(b t) w y x -> b t (y x) w", t=length)


class _Stage(nn.Module):
    """A coarser scale, and residual blocks there."""

    def __init__(self, channels: int, width: int, side: int, blocks: int) -> None:
        super().__init__()
        self.coarser = nn.Sequential(
            nn.Conv2d(channels, width, side, side, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.ModuleList(_ShiftBlock(width) for _ in range(blocks))

    def forward(self, x: Tensor, length: int) -> Tensor:
        """[B * T, C, H, W] to [B * T, width, H / side, W / side]; `length` is T."""
        x = self.coarser(x)
        for block in self.blocks:
            x = block(x, length)
        return x


class _ShiftBlock(nn.Module):
    """Two 3x3 convolutions, the first one on channels of three frames; the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        norm = nn.BatchNorm2d(width)
        nn.init.zeros_(norm.weight)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm)

    def forward(self, x: Tensor, length: int) -> Tensor:
        """[B * T, C, H, W] to the same."""
        return F.relu(x + self.second(self.first(_shifted(x, length))))


def _shifted(x: Tensor, length: int) -> Tensor:
    """A share of the channels from the frame after, as much from the frame before, zeros past the ends."""
    frames = rearrange(x, "(b t) c h w -> b t c h w", t=length)
    count = frames.shape[2] // _SHIFTED
    later, earlier = frames[:, 1:, :count], frames[:, :-1, count : 2 * count]
    nothing = torch.zeros_like(frames[:, :1, :count])
    parts = (torch.cat([later, nothing], 1), torch.cat([nothing, earlier], 1), frames[:, :, 2 * count :])
    return rearrange(torch.cat(parts, dim=2), "b t c h w -> (b t) c h w")


def _energy(difference: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, 1, H, W], about 0 to 2."""
    return _root(difference.abs().mean(dim=1, keepdim=True))


def _root(differences: Tensor) -> Tensor:
    """The root gives small differences a say."""
    return 4 * (differences + 1e-6).sqrt()


class PretrainedFrames(nn.Module):
    """A transformers vision encoder on every sampled frame, beside the patches that carry motion."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, name: str, *, weights: bool = True) -> None:
        super().__init__()
        self.frozen = config.freeze_pretrained
        self.model, width = load_encoder(name, weights=weights, where="judge.student.vision_encoder")
        if self.frozen:
            self.model.requires_grad_(False)
        size = getattr(self.model.config, "image_size", 224)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.project = nn.Linear(width, config.hidden)
        self.patches = Patches(config) if config.motion else None
        # What public encoders were trained with differs little from this; the projection adapts to the rest.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            grid = self.model(pixel_values=torch.zeros(1, 3, *self.size)).last_hidden_state
        self.tokens = grid.shape[1] + (self.patches.tokens if self.patches else 0)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, T, K, 3, H, W] in [0, 1] to tokens [B, T, N, W]."""
        images = nn.functional.interpolate(clips[:, :, 0].flatten(0, 1), self.size, mode="bilinear")
        images = (images - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.model(pixel_values=images).last_hidden_state
        tokens = rearrange(self.project(features), "(b t) n w -> b t n w", b=len(clips))
        return tokens if self.patches is None else torch.cat([tokens, self.patches(clips)], dim=2)

    def train(self, mode: bool = True) -> PretrainedFrames:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self
