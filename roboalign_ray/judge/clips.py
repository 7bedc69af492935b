"""Videos to what the student looks at: sampled frames at its size, each beside the frame right before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.foundation.failures import UserError

LEAST_FRAMES = 2


def sampled_positions(length: int, count: int) -> np.ndarray:
    """`count` frames spread evenly over a clip, first and last included; int64 [count], repeating in short clips.

    Raises:
        UserError: the clip is too short to show motion.
    """
    if length < LEAST_FRAMES:
        raise UserError(
            f"a clip of {length} frame(s) cannot be judged", where="video", remedy="give at least two"
        )
    return np.rint(np.linspace(0, length - 1, count)).astype(np.int64)


def prepare_clips(videos: Sequence[np.ndarray] | np.ndarray, config: StudentConfig) -> np.ndarray:
    """Sample and resize videos.

    Args:
        videos: uint8 [T, H, W, 3] each; lengths and sizes may differ.

    Returns:
        uint8 [B, frames, K, 3, height, width], K = 2 with motion (frame, frame before it in the clip), else 1.

    Raises:
        UserError: a video is not uint8 [T, H, W, 3], or too short.
    """
    return np.stack([_prepared(video, config) for video in videos])


def _prepared(video: np.ndarray, config: StudentConfig) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise UserError(f"video is {video.dtype} {video.shape}, not uint8 [T, H, W, 3]", where="video")
    positions = sampled_positions(len(video), config.frames)
    if config.motion:
        positions = np.stack([positions, np.maximum(positions - 1, 0)], axis=1).reshape(-1)
    frames_NCHW = np.ascontiguousarray(video[positions].transpose(0, 3, 1, 2))
    if frames_NCHW.shape[-2:] != (config.height, config.width):
        pixels = torch.from_numpy(frames_NCHW)
        size = (config.height, config.width)
        frames_NCHW = F.interpolate(pixels, size, mode="bilinear", antialias=True).numpy()
    return frames_NCHW.reshape(config.frames, -1, 3, config.height, config.width)
