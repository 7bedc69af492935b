"""Distances between predicted and real frames: MSE, PSNR, SSIM, LPIPS, LPIPS of what moves; freeze rate and motion.

All metrics are batched torch functions on images in [0, 1]; uint8 frames are first divided by 255. Protocols and
reports call `clip_metrics`; each metric can also be used alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from roboalign_ray.config import EvaluationConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics.perceptual import PerceptualDistance
from roboalign_ray.metrics.regions import freeze_rate, masked_mean, motion_region, relative_motion

MSE_FLOOR = 1e-10  # equal images give 100 dB, so that means stay finite
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
LPIPS_CHUNK = 64  # frames per pass: bounds memory at no cost in time
FRAME_METRICS = ("psnr", "ssim", "lpips", "roi_lpips", "mse")
LOWER_IS_BETTER = frozenset({"lpips", "roi_lpips", "mse", "freeze_rate", "fvd"})

Frames = np.ndarray | Tensor


def to_images(frames: Frames, device: torch.device | str = "cpu") -> Tensor:
    """Convert frames [..., H, W, 3], uint8 or float in [0, 1], to float32 [..., 3, H, W] in [0, 1].

    Raises:
        UserError: the frames have another type or shape.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    if tensor.ndim < 3 or tensor.shape[-1] != 3:
        raise UserError(f"frames are {tuple(tensor.shape)}, not [..., H, W, 3]", where="metrics")
    if tensor.dtype == torch.uint8:
        tensor = tensor.to(device=device, dtype=torch.float32) / 255
    elif tensor.is_floating_point():
        tensor = tensor.to(device=device, dtype=torch.float32)
    else:
        raise UserError(f"frames are {tensor.dtype}, neither uint8 nor float", where="metrics")
    return tensor.movedim(-1, -3)


def mse(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Mean squared error [N]."""
    return (a_NCHW - b_NCHW).square().mean(dim=(1, 2, 3))


def psnr(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in dB for images in [0, 1], 100 dB where they are equal."""
    return -10 * torch.log10(mse(a_NCHW, b_NCHW).clamp_min(MSE_FLOOR))


def ssim(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Structural similarity [N] (Wang et al. 2004) of images in [0, 1], mean over channels and valid pixels.

    Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance: scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)`.

    Raises:
        UserError: a side is shorter than the window.
    """
    if min(a_NCHW.shape[2:]) < SSIM_WINDOW:
        raise UserError(f"images of {tuple(a_NCHW.shape[2:])} are smaller than 11x11", where="SSIM")
    channels = a_NCHW.shape[1]
    # Covariances come from differences of second moments: float64 keeps the digits that cancel.
    a, b = a_NCHW.double(), b_NCHW.double()
    blurred = _blur(torch.cat([a, b, a * a, b * b, a * b], dim=1))
    mean_a, mean_b, aa, bb, ab = blurred.split(channels, dim=1)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def _blur(images_NCHW: Tensor) -> Tensor:
    """Gaussian filter, applied to one axis after the other, valid part only."""
    offsets = torch.arange(SSIM_WINDOW, dtype=images_NCHW.dtype, device=images_NCHW.device) - SSIM_WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).expand(images_NCHW.shape[1], 1, SSIM_WINDOW)
    rows = functional.conv2d(images_NCHW, kernel[..., None], groups=images_NCHW.shape[1])
    return functional.conv2d(rows, kernel[:, :, None], groups=images_NCHW.shape[1])


@dataclass(frozen=True)
class ClipMetrics:
    """Metrics of G samples of one clip.

    Attributes:
        per_frame: metric name -> float64 [G, T]; "roi_lpips" is NaN where nothing moves in the real clip.
        freeze_rate: float64 [G]; NaN where the real clip never moves.
        motion: float64 [G], as `relative_motion`; NaN where the real clip never moves.
    """

    per_frame: Mapping[str, np.ndarray]
    freeze_rate: np.ndarray
    motion: np.ndarray


@torch.no_grad()
def clip_metrics(
    predicted: Frames, real: Frames, start: Frames, lpips: PerceptualDistance, config: EvaluationConfig
) -> ClipMetrics:
    """Every metric of a group of predicted clips against their real continuation.

    Args:
        predicted: frames [G, T, H, W, 3].
        real: frames [T, H, W, 3].
        start: the frame [H, W, 3] before the first; it is used for the region of interest and the freeze rate.
        lpips: the perceptual distance; report its label with the numbers.
        config: thresholds.

    Raises:
        UserError: the shapes do not match.
    """
    device = lpips.shift.device
    predicted_GTCHW, real_TCHW, start_CHW = (to_images(x, device) for x in (predicted, real, start))
    if predicted_GTCHW.shape[1:] != real_TCHW.shape or real_TCHW.shape[1:] != start_CHW.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (predicted, real, start))
        raise UserError(f"predicted, real and start are {shapes}", where="metrics")
    samples, frames = predicted_GTCHW.shape[:2]
    flat_NCHW = predicted_GTCHW.flatten(0, 1)
    target_NCHW = real_TCHW.expand(samples, *real_TCHW.shape).flatten(0, 1)
    region_HW = motion_region(torch.cat([start_CHW[None], real_TCHW]), config.roi_threshold)
    whole, inside = lpips_in_chunks(lpips, flat_NCHW, target_NCHW, region_HW)
    values = {
        "psnr": psnr(flat_NCHW, target_NCHW),
        "ssim": ssim(flat_NCHW, target_NCHW),
        "lpips": whole,
        "roi_lpips": inside,
        "mse": mse(flat_NCHW, target_NCHW),
    }
    return ClipMetrics(
        per_frame={name: _array(value).reshape(samples, frames) for name, value in values.items()},
        freeze_rate=_array(freeze_rate(predicted_GTCHW, real_TCHW, start_CHW, config.freeze_threshold)),
        motion=_array(relative_motion(predicted_GTCHW, real_TCHW, start_CHW)),
    )


def lpips_in_chunks(
    lpips: PerceptualDistance, a_NCHW: Tensor, b_NCHW: Tensor, region_HW: Tensor
) -> tuple[Tensor, Tensor]:
    """LPIPS [N] of the whole image, and [N] of a region of its spatial map, in passes of bounded size."""
    whole, inside = [], []
    for a, b in zip(a_NCHW.split(LPIPS_CHUNK), b_NCHW.split(LPIPS_CHUNK), strict=True):
        distance, maps_NHW = lpips.both(a, b)
        whole.append(distance)
        inside.append(masked_mean(maps_NHW, region_HW))
    return torch.cat(whole), torch.cat(inside)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
