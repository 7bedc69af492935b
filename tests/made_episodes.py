"""Episodes whose every frame and action tells where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from roboalign_ray.episodes.episode import Episode, Outcome


def made_episode(task: int, start: int, variant: int = 0, length: int = 20, size: int = 16) -> Episode:
    """Frame t has brightness 10t; action t is (t, 0.5, start) under the names delta, delta and absolute."""
    number = np.arange(length)
    frames = np.broadcast_to(
        (10 * number).astype(np.uint8)[:, None, None, None], (length, size, size, 3)
    ).copy()
    actions = np.stack([number, np.full(length, 0.5), np.full(length, start)], axis=1).astype(np.float32)
    return Episode(
        episode_id=f"made/task{task}/{start}/v{variant}",
        group_id=f"made/task{task}/{start}",
        frames={"front": frames},
        actions=actions,
        instruction=f"do task {task}",
        fps=10.0,
        embodiment="none",
        action_names=("delta_x [m]", "delta_y [m]", "gripper"),
        action_kinds=("delta", "delta", "hold"),
        state=actions[:, :2] + 1,
        outcome=Outcome(
            success=start % 2 == 0,
            success_per_frame=number > length // 2,
            privileged={
                "object_position": np.ones((length, 3), np.float32) * number[:, None],
                "contact": number % 2 == 0,
                "contact_force": number.astype(np.float32),
            },
        ),
        provenance={"task": task, "nested": {"start": start, "list": [1, 2.5, None]}},
    )


def made_episodes(tasks: int = 4, starts: int = 6, variants: int = 2, **options) -> Iterator[Episode]:
    """All of them, starts outermost."""
    for start in range(starts):
        for task in range(tasks):
            for variant in range(variants):
                yield made_episode(task, start, variant, **options)
