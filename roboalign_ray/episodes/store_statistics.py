"""What a store's statistics.json tells: counts, lengths and per-dimension figures of the actions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionKind
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.rows import SCHEMA_VERSION
from roboalign_ray.episodes.splits import split_of


class StoreStatistics:
    """Counts and action percentiles, gathered while episodes pass."""

    def __init__(self, held_out_fraction: float) -> None:
        self.held_out_fraction = held_out_fraction
        self.lengths: list[int] = []
        self.sources: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.successes: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.instructions: set[str] = set()
        self.action_names: dict[int, list[str]] = {}
        self.action_kinds: dict[int, list[ActionKind]] = {}
        self.actions: dict[int, list[np.ndarray]] = {}

    def add(self, episode: Episode) -> None:
        split = split_of(episode.group_id, self.held_out_fraction)
        self.lengths.append(episode.length)
        self.sources[episode.episode_id.rsplit("/", 2)[0]] += 1
        self.splits[split] += 1
        self.successes[str(episode.outcome.success).lower()] += 1
        self.instructions.add(episode.instruction)
        for view, frames in episode.frames.items():
            self.views[f"{view} {frames.shape[1]}x{frames.shape[2]}"] += 1
        dims = episode.actions.shape[1]
        self.action_names.setdefault(dims, list(episode.action_names))
        before = self.action_kinds.setdefault(dims, list(episode.action_kinds))
        self.action_kinds[dims] = [
            common_kind(*pair) for pair in zip(before, episode.action_kinds, strict=True)
        ]
        if split == "train":
            self.actions.setdefault(dims, []).append(np.asarray(episode.actions, dtype=np.float32))

    def as_json(self) -> dict[str, Any]:
        lengths = np.asarray(self.lengths)
        return {
            "schema_version": SCHEMA_VERSION,
            "episodes": len(lengths),
            "frames": int(lengths.sum()),
            "length": {"min": int(lengths.min()), "max": int(lengths.max()), "mean": float(lengths.mean())},
            "held_out_fraction": self.held_out_fraction,
            "splits": dict(self.splits),
            "sources": dict(sorted(self.sources.items())),
            "views": dict(self.views),
            "success": dict(self.successes),
            "instructions": len(self.instructions - {""}),
            "actions": {str(dims): self._actions(dims) for dims in sorted(self.action_names)},
        }

    def _actions(self, dims: int) -> dict[str, Any]:
        """Per-dimension figures of the train split; of nothing where it is empty."""
        names = self.action_names[dims]
        known = {"names": names, "kinds": self.action_kinds[dims]}
        if dims not in self.actions:
            return {**known, "frames": 0}
        rows = np.concatenate(self.actions[dims]).astype(np.float64)
        low, high = np.percentile(rows, [1, 99], axis=0)
        figures = {"p01": low, "p99": high, "mean": rows.mean(0), "std": rows.std(0)}
        figures |= {"min": rows.min(0), "max": rows.max(0)}
        return {
            **known,
            "frames": len(rows),
            **{key: value.tolist() for key, value in figures.items()},
        }


def common_kind(first: ActionKind, second: ActionKind) -> ActionKind:
    """The kind of two episodes' dimension: an angle that never wraps in one of them is an angle; else unknown."""
    if first == second:
        return first
    return "angle" if {first, second} == {"absolute", "angle"} else UNKNOWN
