"""Computes a store's statistics.json: counts, lengths and the action card's fields."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roboalign_ray.episodes.action_card import ActionStatistics, Bounds
from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionKind
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.rows import SCHEMA_VERSION
from roboalign_ray.episodes.splits import split_of

_SAME_RATE = 1.01  # rates up to this ratio count as equal: cameras of 29.97 and 30 Hz


class RecordingFacts:
    """Collects how actions were recorded: the action card's fields besides names and kinds."""

    def __init__(self) -> None:
        self.rates: Counter[float] = Counter()
        self.strides: set[int] = set()
        self.robots: set[str] = set()

    def add(self, fps: float | None, robot: str | None, provenance: Any) -> None:
        """Add one episode. Its provenance holds "stride" if conversion skipped frames."""
        stride = provenance.get("stride", 1) if isinstance(provenance, Mapping) else 0
        self.rates[fps if fps is not None and 0 < fps < math.inf else 0.0] += 1
        self.strides.add(stride if isinstance(stride, int) and not isinstance(stride, bool) else 0)
        self.robots.add(robot or "")

    def as_json(self) -> dict[str, Any]:
        """rate and stride, None if episodes differ; embodiments, empty if an episode names no robot."""
        slowest, fastest = min(self.rates), max(self.rates)
        one_rate = slowest > 0 and fastest <= _SAME_RATE * slowest
        one_stride = len(self.strides) == 1 and min(self.strides) > 0
        return {
            "rate": float(self.rates.most_common(1)[0][0]) if one_rate else None,
            "stride": min(self.strides) if one_stride else None,
            "embodiments": [] if "" in self.robots else sorted(self.robots),
        }


class StoreStatistics:
    """Collects counts and action card fields while episodes pass.

    Args:
        held_out_fraction: share of groups that the action statistics exclude.
        action_bounds: minimum and maximum per dimension, as stated by the source, for actions with that number of
            dimensions; if omitted, unknown.
    """

    def __init__(self, held_out_fraction: float, action_bounds: Sequence[Bounds | None] = ()) -> None:
        self.held_out_fraction = held_out_fraction
        self.action_bounds = tuple(action_bounds)
        self.lengths: list[int] = []
        self.sources: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.successes: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.instructions: set[str] = set()
        self.action_names: dict[int, list[str]] = {}
        self.action_kinds: dict[int, list[ActionKind]] = {}
        self.recordings: defaultdict[int, RecordingFacts] = defaultdict(RecordingFacts)
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
        self.recordings[dims].add(float(episode.fps), episode.embodiment, episode.provenance)
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
        """The fields of these actions' card; without figures if the train split is empty."""
        bounds = self.action_bounds if len(self.action_bounds) == dims else (None,) * dims
        known = {
            "names": self.action_names[dims],
            "kinds": self.action_kinds[dims],
            "bounds": [pair and list(pair) for pair in bounds],
            **self.recordings[dims].as_json(),
        }
        if dims not in self.actions:
            return {**known, "frames": 0}
        return {**known, **ActionStatistics.of(np.concatenate(self.actions[dims])).model_dump(mode="json")}


def common_kind(first: ActionKind, second: ActionKind) -> ActionKind:
    """The kind of a dimension in two episodes: "angle" if it is an angle that does not wrap in one, else unknown."""
    if first == second:
        return first
    return "angle" if {first, second} == {"absolute", "angle"} else UNKNOWN
