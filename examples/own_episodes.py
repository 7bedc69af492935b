"""Bring episodes of your own: yield them, write a store, and pre-train on it.

python examples/own_episodes.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from roboalign_ray import Episode, pretrain
from roboalign_ray.episodes.store import write_store


class Squares:
    """A bright square that is pushed around: stands for your robot's logs."""

    name = "squares"

    def episodes(self) -> Iterator[Episode]:
        """Every episode, in a fixed order."""
        for number in range(24):
            rng = np.random.default_rng(number)
            actions = rng.integers(-2, 3, size=(16, 2)).astype(np.float32)
            corner = np.clip(24 + np.cumsum(np.vstack([[0, 0], actions[:-1]]), axis=0), 0, 52).astype(int)
            frames = np.full((16, 64, 64, 3), 40, np.uint8)
            for frame, (row, column) in zip(frames, corner, strict=True):
                frame[row : row + 12, column : column + 12] = (220, 120, 40)
            yield Episode(
                episode_id=f"squares/{number}",
                group_id=f"squares/{number}",  # episodes of one start state share it: splits keep them together
                frames={"front": frames},
                actions=actions,
                action_names=("delta_row [px]", "delta_column [px]"),
                action_kinds=("delta", "delta"),
                instruction="push the square",
                fps=5.0,
                embodiment="none",
            )


if __name__ == "__main__":
    store = Path("runs/squares/store")
    write_store(Squares().episodes(), store, overwrite=True)
    settings = (f"episodes.store={store}", "episodes.frame_stride=1", "world_model.action_dims=2")
    steps = ("tokenizer_training.steps=200", "pretraining.steps=200")
    summary = pretrain("demo", *settings, *steps, *sys.argv[1:], out="runs/squares")
    for stage, metrics in summary.items():
        print(f"{stage}: loss {metrics['loss']:.3f} after {metrics['steps']} steps")
