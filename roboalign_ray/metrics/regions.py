"""The region of a clip that moves, how much a predicted clip moves, and how often it is wrongly frozen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

DILATION_PIXELS = 2
STILL = 0.25 / 255  # a real frame that changes by less than a quarter grey level counts as still


def motion_region(clip_TCHW: Tensor, threshold: float, dilation: int = DILATION_PIXELS) -> Tensor:
    """The region of interest of a real clip: the pixels that change over time.

    A pixel belongs to it if its temporal standard deviation (population, mean over channels, [0, 1] scale)
    exceeds `threshold`; the mask is then dilated by a square of `dilation` pixels to each side.

    Returns:
        bool [H, W]; all False for a clip that does not move.
    """
    deviation_HW = clip_TCHW.std(dim=0, correction=0).mean(dim=0)
    mask = (deviation_HW > threshold).float()
    size = 2 * dilation + 1
    return functional.max_pool2d(mask[None, None], size, stride=1, padding=dilation)[0, 0] > 0


def masked_mean(maps_NHW: Tensor, region_HW: Tensor) -> Tensor:
    """Mean [N] over a region; NaN where the region is empty."""
    weights = region_HW.to(maps_NHW.dtype)
    return (maps_NHW * weights).sum(dim=(1, 2)) / weights.sum()


def freeze_rate(predicted_GTCHW: Tensor, real_TCHW: Tensor, start_CHW: Tensor, threshold: float) -> Tensor:
    """Share of predicted frames that do not change while the real frames change.

    Frame t is frozen when its mean absolute change from frame t-1 (the start frame before the first) is below
    `threshold` times the real clip's change at t. Steps at which the real clip changes by less than a quarter grey
    level do not count.

    Returns:
        Rates [G]; NaN where the real clip never moves.
    """
    real_T = _changes(real_TCHW[None], start_CHW)[0]
    predicted_GT = _changes(predicted_GTCHW, start_CHW)
    moving_T = real_T >= STILL
    frozen_GT = (predicted_GT < threshold * real_T) & moving_T
    return frozen_GT.sum(dim=1).float() / moving_T.sum()


def relative_motion(predicted_GTCHW: Tensor, real_TCHW: Tensor, start_CHW: Tensor) -> Tensor:
    """Mean absolute change from frame to frame as a share of the real clip's: 1 moves as much, 0 is a still.

    Returns:
        Shares [G]; NaN where the real clip never moves.
    """
    real = _changes(real_TCHW[None], start_CHW).mean()
    moved_G = _changes(predicted_GTCHW, start_CHW).mean(dim=1)
    return moved_G / real if real > 0 else torch.full_like(moved_G, torch.nan)


def _changes(frames_GTCHW: Tensor, start_CHW: Tensor) -> Tensor:
    """Mean absolute change [G, T] of every frame from the one before it."""
    first = start_CHW.expand(frames_GTCHW.shape[0], 1, *start_CHW.shape)
    before_GTCHW = torch.cat([first, frames_GTCHW[:, :-1]], dim=1)
    return (frames_GTCHW - before_GTCHW).abs().mean(dim=(2, 3, 4))
