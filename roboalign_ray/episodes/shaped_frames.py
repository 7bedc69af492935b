"""A stand-in for the recorded frames of an episode, if memory holds only the kept frames at their final size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np


@dataclass(frozen=True)
class ShapedFrames:
    """Stands for all recorded frames in an `Episode`, while only the kept frames are in memory.

    Supports only what was done in advance: every `stride`-th frame, then resizing to the final size.
    `transforms.stride_episode` and `resize_episode` accept it like an array.

    Attributes:
        kept: uint8 [n, h, w, 3].
        shape: (T, H, W, 3) of the recorded frames.
        stride: frames from one that is kept to the next.
    """

    kept: np.ndarray
    shape: tuple[int, int, int, int]
    stride: int
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        if part != slice(None, None, self.stride):
            raise ValueError(f"only every {self.stride}th frame was kept")
        return as_array(replace(self, shape=(len(self.kept), *self.shape[1:]), stride=1))

    def resized(self, height: int, width: int) -> np.ndarray:
        """The kept frames, which have this size.

        Raises:
            ValueError: another size is requested, or frames between those kept.
        """
        if self.kept.shape[:3] != (self.shape[0], height, width):
            raise ValueError(f"frames were kept as {self.kept.shape}, not {(self.shape[0], height, width)}")
        return self.kept


def as_array(frames: ShapedFrames) -> np.ndarray:
    """For an `Episode`: the kept frames themselves if they are as recorded, else the stand-in."""
    return frames.kept if frames.kept.shape == frames.shape else cast(np.ndarray, frames)
