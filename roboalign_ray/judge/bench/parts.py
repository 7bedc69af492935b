"""Where a part of a clip is spoiled, and whether one can see it.

A clip has three thirds. A local rule spoils frames of one of them, and at strength 1 the whole third; a rule that cuts
begins there and goes on to the end. The first frame is left as it is: it is what a world model starts from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THIRDS = 3
_LEAST = 2  # frames: one frame cannot be put in another order
_BLOCK = 8  # pixels a side
_UNSEEN, _SEEN = 4.0, 14.0  # grey levels of a block's mean difference


@dataclass(frozen=True)
class Part:
    """Frames `first` to `end`, `end` not included."""

    first: int
    end: int

    @property
    def length(self) -> int:
        """Frames."""
        return self.end - self.first


def third_of(length: int, third: int) -> Part:
    """Third 0, 1 or 2 of a clip of `length` frames, without the clip's first frame, and of two frames at least."""
    first = max(1, round(third * length / THIRDS))
    end = max(round((third + 1) * length / THIRDS), first + _LEAST)
    return Part(min(first, max(1, length - _LEAST)), min(end, length))


def part_of(length: int, third: int, strength: float, rng: np.random.Generator, least: int = 1) -> Part:
    """Some frames of a third: all of them at strength 1, fewer at less, at a random place in it."""
    whole = third_of(length, third)
    count = int(np.clip(round(strength * whole.length), min(least, whole.length), whole.length))
    first = whole.first + int(rng.integers(whole.length - count + 1))
    return Part(first, first + count)


def seen(before: np.ndarray, after: np.ndarray) -> float:
    """How well the difference of two clips can be seen: 0 (not at all) to 1.

    Args:
        before, after: uint8 [T, H, W, 3]; where one is shorter, as far as it goes.

    By the block of 8x8 pixels of all frames that differs most: at a difference of 14 grey levels in the mean, or where
    another picture comes, it is 1. Freezing what stands still, for one, cannot be seen.
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
