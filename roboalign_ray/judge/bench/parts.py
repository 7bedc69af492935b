"""The part of a clip that a local rule degrades, and the visibility of the change.

A clip has three thirds. A local rule degrades frames of one of them, at strength 1 the whole third; a rule that cuts
begins there and continues to the end. The first frame stays unchanged, since a world model starts from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THIRDS = 3
_LEAST = 2  # frames: a single frame cannot be reordered
_BLOCK = 8  # pixels per side
_UNSEEN, _SEEN = 4.0, 14.0  # mean difference of a block in grey levels


@dataclass(frozen=True)
class Part:
    """The frames from `first` up to `end`, which is excluded."""

    first: int
    end: int

    @property
    def length(self) -> int:
        """Frames."""
        return self.end - self.first


def third_of(length: int, third: int) -> Part:
    """Third 0, 1 or 2 of a clip of `length` frames, without the clip's first frame; it has at least two frames."""
    first = max(1, round(third * length / THIRDS))
    end = max(round((third + 1) * length / THIRDS), first + _LEAST)
    return Part(min(first, max(1, length - _LEAST)), min(end, length))


def part_of(length: int, third: int, strength: float, rng: np.random.Generator, least: int = 1) -> Part:
    """A part of a third: all of it at strength 1, fewer frames at a lower strength, at a random position."""
    whole = third_of(length, third)
    count = int(np.clip(round(strength * whole.length), min(least, whole.length), whole.length))
    first = whole.first + int(rng.integers(whole.length - count + 1))
    return Part(first, first + count)


def seen(before: np.ndarray, after: np.ndarray) -> float:
    """The visibility of the difference of two clips, from 0 (invisible) to 1.

    Args:
        before, after: uint8 [T, H, W, 3]; if the lengths differ, only the common frames are compared.

    It is measured by the block of 8x8 pixels in any frame that differs most; it is 1 from a mean difference of 14 grey
    levels on. For example, freezing a still scene is invisible.
    """
    length = min(len(before), len(after))
    return float(seen_by_frame(before[:length], after[:length]).max())


def seen_by_frame(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """As `seen`, of every frame of two clips [T, H, W, 3] alone: float [T]."""
    length = len(before)
    changed = np.abs(before.astype(np.float32) - after).mean(axis=-1)
    high, wide = (size - size % _BLOCK or size for size in changed.shape[1:])
    tall, broad = min(_BLOCK, high), min(_BLOCK, wide)
    blocks = changed[:, :high, :wide].reshape(length, high // tall, tall, wide // broad, broad)
    most = blocks.mean(axis=(2, 4)).max(axis=(1, 2))
    return np.clip((most - _UNSEEN) / (_SEEN - _UNSEEN), 0, 1)
