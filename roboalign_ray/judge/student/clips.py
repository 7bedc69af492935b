"""Videos to what the student looks at: sampled frames at its size, and what happens in all the frames between them.

    sampled      │        │        │        frame, and the frame right before it
    all frames  ─┴┬┬┬┬┬┬┬┬┴┬┬┬┬┬┬┬┬┴        per pixel, over the interval up to the sampled frame: the largest and
                   interval                 smallest change, bend and return, and detail

However long a clip is, a cut, a frozen or a single black frame between two sampled ones leaves its mark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.foundation.failures import UserError

LEAST_FRAMES = 2
_AT_ONCE = 64  # frames that are resized or compared together


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


def picture_positions(length: int, config: StudentConfig) -> np.ndarray:
    """Frames of a clip that are shown as they are, int64 [frames, 1 to 3]: each sampled one; with motion the one before
    it; with intervals the one right after the sampled one before."""
    positions = sampled_positions(length, config.frames)
    pictures = [positions]
    if config.motion:
        pictures.append(np.maximum(positions - 1, 0))
    if config.intervals:
        pictures.append(np.minimum(np.concatenate([[0], positions[:-1] + 1]), positions))
    return np.stack(pictures, axis=1)


def prepare_clips(videos: Sequence[np.ndarray] | np.ndarray, config: StudentConfig) -> np.ndarray:
    """Sample and resize videos.

    Args:
        videos: uint8 [T, H, W, 3] each; lengths and sizes may differ.

    Returns:
        uint8 [B, frames, K, 3, height, width], K = 1: the frame; 2 with motion: and the frame before it in the clip;
        5 with intervals: and the frame right after the sampled one before, and two pictures of `interval_pictures`.

    Raises:
        UserError: a video is not uint8 [T, H, W, 3], or too short.
    """
    return np.stack([_prepared(video, config) for video in videos])


def interval_pictures(video_TCHW: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """What happens in all frames up to each sampled one, from the sampled one before it.

    Args:
        video_TCHW: uint8, the whole clip.
        positions: int64 [n], rising, from `sampled_positions`.

    Returns:
        uint8 [n, 2, 3, H, W], grey levels, means over the colours. First picture: the largest change from a frame to
        the next, the smallest one (0 where a frame repeats), and the largest bend |a - 2b + c| / 2 of three frames
        in a row (a flash); second: the smallest return |a - c| of three frames in a row (a turn backwards), and the
        largest and the smallest detail |x - mean of its 3x3 neighbours|.
    """
    changes, bends, returns, details = _courses(video_TCHW)
    shown = np.empty((len(positions), 6, *video_TCHW.shape[2:]), np.uint8)
    extremes = ((changes, np.maximum), (changes, np.minimum), (bends, np.maximum), (returns, np.minimum))
    before = 0
    for number, position in enumerate(map(int, positions)):
        inside = slice(min(before + 1, position), position + 1)
        for place, (course, extreme) in enumerate((*extremes, (details, np.maximum), (details, np.minimum))):
            extreme.reduce(course[inside], axis=0, out=shown[number, place])
        before = position
    return shown.reshape(len(positions), 2, 3, *video_TCHW.shape[2:])


def _courses(video_TCHW: np.ndarray) -> tuple[np.ndarray, ...]:
    """Change, bend, return and detail of every frame, uint8 [T, H, W] each; where there are no frames before, 0, and
    for the return of the second frame its change."""
    shape = (len(video_TCHW), *video_TCHW.shape[2:])
    changes, bends, returns, details = (np.zeros(shape, np.uint8) for _ in range(4))
    for first in range(0, len(video_TCHW), _AT_ONCE):
        begin, end = max(0, first - 2), min(first + _AT_ONCE, len(video_TCHW))
        frames = video_TCHW[begin:end].astype(np.int16)
        steps = frames[1:] - frames[:-1]
        details[begin:end] = _levels(9 * frames - _around(frames), 27)
        changes[begin + 1 : end] = _levels(steps, 3)
        if not begin:
            returns[1:2] = changes[1:2]
        bends[begin + 2 : end] = _levels(steps[1:] - steps[:-1], 6)
        returns[begin + 2 : end] = _levels(frames[2:] - frames[:-2], 3)
    return changes, bends, returns, details


def _around(frames_TCHW: np.ndarray) -> np.ndarray:
    """Sums over each pixel and its eight neighbours, edges repeated."""
    rows = np.concatenate([frames_TCHW[..., :1, :], frames_TCHW, frames_TCHW[..., -1:, :]], axis=-2)
    sums = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    columns = np.concatenate([sums[..., :1], sums, sums[..., -1:]], axis=-1)
    return columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]


def _levels(differences_TCHW: np.ndarray, share: int) -> np.ndarray:
    """Absolute differences summed over the colours, divided by `share`, rounded."""
    return ((np.abs(differences_TCHW).sum(axis=1, dtype=np.int16) + share // 2) // share).astype(np.uint8)


def _prepared(video: np.ndarray, config: StudentConfig) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise UserError(f"video is {video.dtype} {video.shape}, not uint8 [T, H, W, 3]", where="video")
    shown = picture_positions(len(video), config)
    if not config.intervals:
        return _resized(video[shown.reshape(-1)], config).reshape(
            *shown.shape, 3, config.height, config.width
        )
    frames_TCHW = _resized(video, config)
    return np.concatenate([frames_TCHW[shown], interval_pictures(frames_TCHW, shown[:, 0])], axis=1)


def _resized(video: np.ndarray, config: StudentConfig) -> np.ndarray:
    """uint8 [T, 3, height, width]."""
    size = (config.height, config.width)
    if video.shape[1:3] == size:
        return np.ascontiguousarray(video.transpose(0, 3, 1, 2))
    parts = []
    for first in range(0, len(video), _AT_ONCE):
        frames_NCHW = np.ascontiguousarray(video[first : first + _AT_ONCE].transpose(0, 3, 1, 2))
        parts.append(F.interpolate(torch.from_numpy(frames_NCHW), size, mode="bilinear", antialias=True))
    return torch.cat(parts).numpy()
