"""A store of toy episodes with the labels that progress is learned from: distances can be read off the picture.

A red square is the object, a blue one the target, a green one the hand; a pixel is a centimetre.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.store import EpisodeStore, open_store, write_store

SIZE, FRAMES, PIXEL_M = 32, 6, 0.01
COLOURS = {"object_position": 0, "target_position": 2, "gripper_position": 1}


def labelled_episode(task: str, start: int, variant: str = "expert", *, broken: bool = False) -> Episode:
    rng = np.random.default_rng([start, sum(map(ord, task + variant))])
    places = {name: rng.integers(2, SIZE - 6, (FRAMES, 2)) for name in COLOURS}
    frames = {view: np.full((FRAMES, SIZE, SIZE, 3), 30 + 5 * n, np.uint8) for n, view in enumerate("ab")}
    for name, channel in COLOURS.items():
        for t, (row, column) in enumerate(places[name]):
            for seen in frames.values():
                seen[t, row : row + 4, column : column + 4, channel] = 250
    labels = {
        name: np.concatenate([PIXEL_M * at, np.zeros((FRAMES, 1))], axis=1).astype(np.float32)
        for name, at in places.items()
    }
    if broken:
        labels["target_position"] = np.full((FRAMES, 3), np.nan, np.float32)
    return Episode(
        episode_id=f"toy/{task}/{start}/{variant}",
        group_id=f"toy/{task}/{start}",
        frames=frames,
        actions=np.zeros((FRAMES, 2), np.float32),
        instruction=f"do {task}",
        fps=5.0,
        embodiment="sawyer",
        outcome=Outcome(privileged=labels),
    )


def labelled_store(folder: Path, starts: int = 8) -> EpisodeStore:
    """Two tasks that can be learned, and one whose target is not known."""

    def episodes() -> Iterator[Episode]:
        for start in range(starts):
            for task in ("slide", "turn"):
                for variant in ("expert", "noisy"):
                    yield labelled_episode(task, start, variant)
            yield labelled_episode("grope", start, broken=True)

    write_store(episodes(), folder, held_out_fraction=0.3)
    return open_store(folder)
