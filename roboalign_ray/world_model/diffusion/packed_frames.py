"""Frames without loss in a few bytes: each as its difference from the frame before it, deflated.

The differences count modulo 256, so the frames come back bit for bit. What stands still becomes runs of zeros, and what
moves small numbers: run lengths and Huffman codes pack those as small as a search for repeats does.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

_DEFLATE_LIMIT = 1032  # deflate makes at most this many bytes of one
_DIMENSIONS = 6


@dataclass(frozen=True)
class PackedFrames:
    """Clips of frames.

    Attributes:
        shape: (G, T, V, H, W, 3) of the frames.
        data: uint8 [bytes].

    Raises:
        ValueError: on construction, where this is no shape of frames, or `data` cannot hold them.
    """

    shape: tuple[int, int, int, int, int, int]
    data: np.ndarray

    def __post_init__(self) -> None:
        if len(self.shape) != _DIMENSIONS or min(self.shape) < 1 or self.shape[-1] != 3:
            raise ValueError(f"frames of shape {self.shape}, not [G, T, V, H, W, 3]")
        if self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise ValueError(f"packed frames are {self.data.dtype} {self.data.shape}, not uint8 [bytes]")
        if self.size > _DEFLATE_LIMIT * len(self.data):
            raise ValueError(f"{len(self.data)} bytes cannot hold frames of shape {self.shape}")

    @property
    def size(self) -> int:
        """Bytes of the frames themselves."""
        size = 1
        for length in self.shape:
            size *= int(length)
        return size

    @classmethod
    def of(cls, frames: np.ndarray, before: np.ndarray | None = None) -> PackedFrames:
        """Pack.

        Args:
            frames: uint8 [G, T, V, H, W, 3].
            before: uint8 [V, H, W, 3], the frame before the first one of every clip; it is wanted for unpacking too.
        """
        first = np.zeros(frames.shape[2:], np.uint8) if before is None else before
        deflate, parts = zlib.compressobj(1, strategy=zlib.Z_RLE), []
        for clip in frames:
            last = first
            for frame in clip:
                parts.append(deflate.compress(np.subtract(frame, last).tobytes()))
                last = frame
        data = b"".join([*parts, deflate.flush()])
        groups, count, views, height, width, colours = map(int, frames.shape)
        return cls((groups, count, views, height, width, colours), np.frombuffer(data, np.uint8))

    def frames(self, before: np.ndarray | None = None) -> np.ndarray:
        """The frames, uint8 [G, T, V, H, W, 3]. Arguments as for `of`.

        Raises:
            ValueError: the data is damaged.
        """
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(self.data.tobytes(), self.size)
            rest = inflate.decompress(inflate.unconsumed_tail, 1)
        except zlib.error as error:
            raise ValueError(f"packed frames are damaged ({error})") from None
        if len(data) != self.size or rest or not inflate.eof or inflate.unused_data:
            raise ValueError(f"packed frames are damaged: they are not of shape {self.shape}")
        frames = np.frombuffer(bytearray(data), np.uint8).reshape(self.shape)
        if before is not None:
            frames[:, 0] += before
        for number in range(1, self.shape[1]):
            frames[:, number] += frames[:, number - 1]
        return frames
