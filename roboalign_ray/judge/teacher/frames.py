"""The frames of a video that a teacher sees: a few, evenly spaced, in the size and number that its encoder needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.judge.student.clips import sampled_positions

_PAIR = 2  # the encoder merges two frames


@dataclass(frozen=True)
class ShownVideo:
    """The frames that a teacher sees.

    Attributes:
        frames: uint8 [N, h, w, 3], N even.
        positions: int64 [N], their positions in the video.
        fps, length: frame rate and length of the whole video.
    """

    frames: np.ndarray
    positions: np.ndarray
    fps: float
    length: int

    def metadata(self) -> dict[str, Any]:
        """Metadata for processors, so that each frame gets its true time and frames are not sampled again."""
        return {
            "fps": float(self.fps),
            "duration": self.length / self.fps,
            "total_num_frames": self.length,
            "frames_indices": [int(position) for position in self.positions],
            "video_backend": "pyav",
        }


def shown_video(frames: np.ndarray, fps: float, *, count: int, pixels: int, factor: int) -> ShownVideo:
    """Sample and resize.

    Args:
        frames: uint8 [T, H, W, 3], T at least 2.
        fps: frame rate of the video.
        count: largest number of frames.
        pixels: approximate number of pixels per frame; the aspect ratio is kept.
        factor: height and width become multiples of this.
    """
    kept = min(count, len(frames))
    positions = sampled_positions(len(frames), kept - kept % _PAIR)
    height, width = shown_size(frames.shape[1], frames.shape[2], pixels, factor)
    return ShownVideo(resize_frames(frames[positions], height, width), positions, float(fps), len(frames))


def shown_size(height: int, width: int, pixels: int, factor: int) -> tuple[int, int]:
    """(height, width): multiples of `factor`, with about `pixels` pixels and nearly the same aspect ratio."""
    scale = math.sqrt(pixels / (height * width))
    rows, columns = (max(1, round(side * scale / factor)) * factor for side in (height, width))
    return rows, columns


def size_limits(frames: int, pixels: int, factor: int) -> dict[str, int]:
    """Limits for a processor, in pixels of a whole video, that keep it from resizing any shown video.

    Args:
        frames, pixels, factor: as in `shown_video`.
    """
    return {"shortest_edge": factor**2, "longest_edge": 4 * frames * max(pixels, factor**2)}
