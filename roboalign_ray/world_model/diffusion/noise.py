"""The noise of a sample: standard normal numbers that follow from its seed and a frame's number alone.

Whatever else is in the batch, however frames are cut into steps, and whichever device denoises them, a seed gives the
same numbers. Frames count from 0 at the beginning of the rollout, or at its last branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from roboalign_ray.world_model.seeds import generator

# What numbers are for; each has streams of its own. The fresh noise of a stochastic sampler's steps numbers from 1 on.
_STREAMS = {"clip": 0, "actions": 1, "history": 2}


def normals(
    seeds: Sequence[int],
    shape: tuple[int, ...],
    *,
    purpose: Literal["clip", "actions", "history"] = "clip",
    frame: int = 0,
    step: int = 0,
) -> np.ndarray:
    """Standard normal float32 [len(seeds), *shape].

    Args:
        purpose: the clip's own noise, the offset of the actions, or the noise on the history.
        frame: number of the clip's first frame.
        step: denoising step, from 1 on, that the noise is added in; 0 is the noise that sampling begins with.

    Raises:
        UserError: a seed outside [0, 2**128).
    """
    rows = np.empty((len(seeds), *shape), np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        generator(seed, step, frame, _STREAMS[purpose]).standard_normal(out=row, dtype=np.float32)
    return rows
