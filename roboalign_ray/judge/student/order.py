"""Which frame comes after which, from how far apart all pairs of frames are.

In a recording, frames are the further apart the more time lies between them. Where a part runs backwards, is left out,
comes twice, stands still or is shuffled, that is no longer so, though no single frame looks wrong: the matrix of all
distances shows it at once, as it shows repetition (RepNet, arXiv 2006.15418). Convolutions over neighbouring frames
learn it far more slowly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig

PICTURES = (
    3  # of every sampled frame: itself, the frame before it, and the one after the sampled frame before
)
_SIDE = 16  # pixels that pictures are averaged to before they are compared
_FLOOR = 1 / 255  # what is closer than a grey level counts as the same
_WIDEST = (
    0.05  # added to variances: a distance that hardly varies in training must not outweigh all others later
)


class OrderOfFrames(nn.Module):
    """Distances of all pairs of pictures to features; output [B, width]."""

    pairs: Tensor

    def __init__(self, config: StudentConfig, width: int) -> None:
        super().__init__()
        self.width = width
        count = PICTURES * config.frames
        pairs = torch.triu_indices(count, count, offset=1)
        self.register_buffer("pairs", pairs, persistent=False)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(pairs.shape[1], eps=_WIDEST),
            nn.Linear(pairs.shape[1], width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, T, K, 3, H, W] in [0, 1] to [B, width]."""
        return self.layers(self.distances(clips))

    def distances(self, clips: Tensor) -> Tensor:
        """Logarithms of mean absolute differences [B, pairs], about -3 to 3; pictures in the order of time: of every
        sampled frame the one after the sampled frame before, the one before it, itself."""
        shown = clips[:, :, [2, 1, 0]].flatten(0, 2)
        small = F.adaptive_avg_pool2d(shown, _SIDE).flatten(1).unflatten(0, (len(clips), -1))
        apart = torch.cdist(small, small, p=1) / small.shape[-1]
        return (apart[:, self.pairs[0], self.pairs[1]] + _FLOOR).log() + 3
