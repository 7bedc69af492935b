"""A clip in which every pixel is known: a grey table, a red object that moves right, a blue gripper that comes down."""

from __future__ import annotations

import numpy as np

from roboalign_ray.judge.bench.corruptions import Material

FRAMES, SIZE = 12, 32
GREY, RED, BLUE = 100, (200, 20, 20), (20, 20, 200)


def made_clip() -> tuple[np.ndarray, Material]:
    """A grey table, a red object of 4x4 that moves right, a blue gripper of 4x4 that moves down."""
    frames = np.full((FRAMES, SIZE, SIZE, 3), GREY, np.uint8)
    thing, gripper = (np.zeros((FRAMES, SIZE, SIZE), bool) for _ in range(2))
    for t in range(FRAMES):
        thing[t, 20:24, 4 + t : 8 + t] = True
        gripper[t, 2 + t // 2 : 6 + t // 2, 14:18] = True
    frames[thing], frames[gripper] = RED, BLUE
    other = np.full_like(frames, 7)
    other[0] = frames[0]
    scene = np.full_like(frames, 220)
    return frames, Material(
        thing, gripper, other, "open the drawer", other_scene=scene, other_episode=scene[::-1]
    )
