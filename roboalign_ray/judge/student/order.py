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
IN_TIME = [2, 1, 0]  # the one after the sampled frame before, the one before it, itself
_SIDE = 16  # pixels that pictures are averaged to before they are compared
_PLACES, _MOST = 8, 4  # places a side, and how many of them stand for where two pictures differ most
_FLOOR = 1 / 255  # what is closer than a grey level counts as the same
_WIDEST = (
    0.05  # added to variances: a distance that hardly varies in training must not outweigh all others later
)


class OrderOfFrames(nn.Module):
    """Distances of all pairs of pictures to features; output [B, width]."""

    pairs: Tensor

    def __init__(self, config: StudentConfig, width: int) -> None:
        super().__init__()
        self.width, self.places = width, config.order_places
        count = PICTURES * config.frames
        self.register_buffer("pairs", torch.triu_indices(count, count, offset=1), persistent=False)
        features = self.pairs.shape[1] * (1 + self.places)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(features, eps=_WIDEST),
            nn.Linear(features, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, T, K, 3, H, W] in [0, 1] to [B, width]."""
        return self.layers(self.distances(clips))

    def distances(self, clips: Tensor) -> Tensor:
        """`pair_distances` of all pairs [B, pairs], those of whole pictures first; pictures in the order `IN_TIME`."""
        small = shrunk(clips.flatten(0, 2)).unflatten(0, clips.shape[:3])
        return pair_distances(small[:, :, IN_TIME].flatten(1, 2), self.pairs, places=self.places).flatten(1)


def shrunk(pictures: Tensor) -> Tensor:
    """Pictures float [N, 3, H, W] as small as they are compared, [N, 3, 16, 16]."""
    return F.adaptive_avg_pool2d(pictures, _SIDE)


def pair_distances(small: Tensor, pairs: Tensor, *, places: bool) -> Tensor:
    """How far apart pictures are: logarithms of mean absolute differences, about -3 to 3.

    Args:
        small: float [B, N, 3, 16, 16], from `shrunk`, colours in [0, 1].
        pairs: int64 [2, P], positions of each pair's pictures.
        places: also the mean over the four of 8x8 places in which the two differ most: a small thing that moves
            hardly changes a whole picture.

    Returns:
        float [B, 1 or 2, P].
    """
    flat = small.flatten(2)
    apart = [(torch.cdist(flat, flat, p=1) / flat.shape[-1])[:, pairs[0], pairs[1]]]
    if places:
        coarse = F.adaptive_avg_pool2d(small.flatten(0, 1), _PLACES).flatten(2).unflatten(0, small.shape[:2])
        by_colour = [(colour[:, pairs[0]] - colour[:, pairs[1]]).abs() for colour in coarse.unbind(2)]
        by_place = sum(by_colour) / len(by_colour)
        apart.append(by_place.topk(_MOST, dim=-1, sorted=False).values.mean(dim=-1))
    return (torch.stack(apart, dim=1) + _FLOOR).log() + 3
