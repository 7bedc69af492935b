"""Drops and resizes frames one by one during decoding, so that memory holds only the kept frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.shaped_frames import ShapedFrames, as_array
from roboalign_ray.episodes.transforms import Fit, resize_frames, target_size

MOST_FRAME_PIXELS = 4096 * 2304  # limit on one frame; decoders hold up to 17 frames
MOST_PIXELS = 2**28  # limit on the kept frames of an untrusted video; 800 MB
MOST_EPISODE_PIXELS = 2**30  # limit on the kept frames of one view of an episode; 3 GB


@dataclass(frozen=True)
class Shaping:
    """Which frames are kept, and at which size.

    Attributes:
        stride: keep every n-th frame.
        fps: alternatively the wanted frame rate, which must divide the source's; None keeps it.
        height, width: pixels; None keeps the source's, or follows from the other one.
        fit: if the aspect changes: "stretch", "crop" or "pad".
    """

    stride: int = 1
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    fit: Fit = "stretch"

    def of_rate(self, fps: float, where: str) -> Shaping:
        """The same with its stride computed for a source of this rate.

        Raises:
            EpisodeError: the wanted rate does not divide the source's.
        """
        if self.fps is None:
            return self
        ratio = fps / self.fps
        stride = max(1, round(ratio))
        if abs(ratio - stride) > 0.01 * stride:
            raise EpisodeError(f"{self.fps:g} Hz does not divide its {fps:g} Hz", where=where)
        return replace(self, stride=stride, fps=None)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of kept frames for a source of this size."""
        return target_size((height, width), self.height, self.width)


WHOLE = Shaping()  # every frame as it is


@dataclass(frozen=True)
class Kept:
    """The kept frames of a recording.

    Attributes:
        pictures: uint8 [n, h, w, 3].
        count: number of frames of the source.
        size: (height, width) of the source.
        stride: frames from one that is kept to the next.
    """

    pictures: np.ndarray
    count: int
    size: tuple[int, int]
    stride: int = 1

    def frames(self, length: int | None = None) -> np.ndarray:
        """For an `Episode`: the first `length` recorded frames (None: all), as an array or a stand-in."""
        length = self.count if length is None else length
        kept = self.pictures[: -(-length // self.stride)]
        return as_array(ShapedFrames(kept, (length, *self.size, 3), self.stride))


class FrameCollector:
    """Takes recorded frames in order, and keeps those of `shaping`.

    Args:
        shaping: with known stride (`Shaping.of_rate`).
        expected: maximum of frames, for which memory is reserved. None: unknown.
        most_pixels: limit on all kept frames together.
        where: for errors.
    """

    def __init__(
        self,
        shaping: Shaping,
        expected: int | None,
        *,
        most_pixels: int = MOST_EPISODE_PIXELS,
        where: str = "video",
    ) -> None:
        self._shaping, self._expected, self._most, self._where = shaping, expected, most_pixels, where
        self._frames: np.ndarray | None = None
        self._size = (0, 0)
        self._kept = self.count = 0

    def add(self, frame: np.ndarray) -> None:
        """Add the next recorded frame, uint8 [H, W, 3].

        Raises:
            EpisodeError: its size differs from that of earlier frames, or the kept frames become too large.
        """
        size = (frame.shape[0], frame.shape[1])
        if not self.count:
            self._size = size
        elif size != self._size:
            old, new = (f"{width}x{height}" for height, width in (self._size, size))
            raise EpisodeError(f"changes its size from {old} to {new}", where=self._where)
        self.count += 1
        if (self.count - 1) % self._shaping.stride:
            return
        target = self._shaping.size(*size)
        self._room(target)
        assert self._frames is not None
        same = target == size
        self._frames[self._kept] = (
            frame if same else resize_frames(frame[None], *target, self._shaping.fit)[0]
        )
        self._kept += 1

    def done(self) -> Kept:
        """The kept frames.

        Raises:
            EpisodeError: there was no frame.
        """
        if self._frames is None:
            raise EpisodeError("holds no frame", where=self._where)
        if self._kept < len(self._frames):
            self._frames.resize((self._kept, *self._frames.shape[1:]), refcheck=False)
        return Kept(self._frames, self.count, self._size, self._shaping.stride)

    def _room(self, target: tuple[int, int]) -> None:
        if self._frames is None:
            expected = 32 if self._expected is None else -(-self._expected // self._shaping.stride)
            check_pixels(expected, target, self._most, self._where)
            self._frames = np.empty((max(1, expected), *target, 3), np.uint8)
        elif self._kept == len(self._frames):
            check_pixels(self._kept + 1, target, self._most, self._where)
            longer = self._kept + max(1, self._kept // 2)
            # The operating system moves large arrays without a copy.
            self._frames.resize((longer, *target, 3), refcheck=False)


def check_pixels(frames: int, size: tuple[int, int], most: int, where: str) -> None:
    """Refuse more pixels than allowed.

    Raises:
        EpisodeError: `frames` of that (height, width) hold more than `most` pixels.
    """
    if frames * size[0] * size[1] > most:
        raise EpisodeError(
            f"{frames} frames of {size[1]}x{size[0]} hold more than the {most} pixels allowed",
            where=where,
            remedy="keep fewer or smaller frames",
        )
