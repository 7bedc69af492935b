"""Labelled frames of an episode store, in memory, and batches of them in an order that a step's number gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.store import EpisodeStore
from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.planning.progress.distances import LABELS, distances

_BYTES_PER_GB = 10**9


@dataclass(frozen=True)
class LabelledFrames:
    """Frames with their distances.

    Attributes:
        frames: uint8 [N, V, H, W, 3].
        distances: float32 [N, 2], metres.
        tasks: names, sorted.
        task: int64 [N], numbers of `tasks`.
        group: int64 [N], equal for frames of one start state.
        views: V names.
        embodiments: robots, sorted.
    """

    frames: np.ndarray
    distances: np.ndarray
    tasks: tuple[str, ...]
    task: np.ndarray
    group: np.ndarray
    views: tuple[str, ...]
    embodiments: tuple[str, ...]

    @property
    def starts(self) -> int:
        """Different start states."""
        return len(np.unique(self.group))


def read_labelled_frames(
    store: EpisodeStore,
    numbers: Sequence[int],
    *,
    views: Sequence[str],
    size: tuple[int, int],
    tasks: Sequence[str] = (),
    memory_gb: float,
) -> LabelledFrames:
    """Frames of the episodes at these positions that have all labels.

    Args:
        views: names of cameras; empty takes the first one of the first episode.
        size: (height, width) that frames are resized to.
        tasks: take these alone; empty takes all.
        memory_gb: maximum of the result; every episode is thinned by the same stride to fit.

    Raises:
        UserError: a task is not in the store, an episode lacks a camera, or no frame has labels.
    """
    where = str(store.path)
    named = {number: task_of(store.group_ids[number]) for number in numbers}
    for task in tasks:
        if task not in named.values():
            remedy = nearest_key(task, sorted(set(named.values())))
            raise UserError(f"no episode of the task '{task}'", where=where, remedy=remedy)
    taken = [number for number in numbers if not tasks or named[number] in tasks]
    stride, read = 1, _Read(size)
    for number in taken:
        episode = store.read(number)
        views = tuple(views) or tuple(episode.frames)[:1]
        if not read.frames:
            bytes_each = len(views) * size[0] * size[1] * 3
            frames = sum(store.lengths[n] for n in taken)
            stride = max(1, -(-frames * bytes_each // int(memory_gb * _BYTES_PER_GB)))
        read.add(episode, named[number], views, stride)
    return read.done(tuple(views), where)


def task_of(group_id: str) -> str:
    """The task of a start state: the middle of "metaworld/drawer-open/3"; "" where the name has another form."""
    parts = group_id.split("/")
    return parts[1] if len(parts) == 3 else ""


class _Read:
    """What was read so far."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self.frames: list[np.ndarray] = []
        self._distances: list[np.ndarray] = []
        self._tasks: list[str] = []
        self._groups: dict[str, int] = {}
        self._group: list[int] = []
        self._robots: set[str] = set()

    def add(self, episode: Episode, task: str, views: Sequence[str], stride: int) -> None:
        labels = episode.outcome.privileged
        if not task or any(name not in labels for name in LABELS):
            return
        if missing := [view for view in views if view not in episode.frames]:
            remedy = nearest_key(missing[0], list(episode.frames))
            raise UserError(f"no view '{missing[0]}'", where=episode.episode_id, remedy=remedy)
        pairs = distances(labels)[::stride]
        known = np.isfinite(pairs).all(axis=1)
        if not known.any():
            return
        seen = [resize_frames(episode.frames[v][::stride][known], *self._size) for v in views]
        self.frames.append(np.stack(seen, axis=1))
        self._distances.append(pairs[known])
        count = int(known.sum())
        self._tasks += [task] * count
        self._group += [self._groups.setdefault(episode.group_id, len(self._groups))] * count
        self._robots |= {episode.embodiment} - {""}

    def done(self, views: tuple[str, ...], where: str) -> LabelledFrames:
        if not self.frames:
            raise UserError(
                f"no frame has the labels {', '.join(LABELS)}",
                where=where,
                remedy="use a store of 'roboalign episodes generate'",
            )
        tasks = sorted(set(self._tasks))
        return LabelledFrames(
            np.concatenate(self.frames),
            np.concatenate(self._distances),
            tuple(tasks),
            np.array([tasks.index(task) for task in self._tasks]),
            np.array(self._group),
            views,
            tuple(sorted(self._robots)),
        )


class FrameBatches:
    """Endless batches, each drawn by the number of its step, so that a position is one number.

    Args:
        data: what is drawn from, every task equally often.
        count: frames of a batch.
        seed: of the order.
        rank: this worker's number; workers draw different frames.
    """

    def __init__(self, data: LabelledFrames, count: int, *, seed: int, rank: int = 0) -> None:
        self._data, self._count, self._rank, self._step = data, count, rank, 0
        self._identity = {"seed": seed, "frames": len(data.frames), "count": count}
        self._of_task = [np.flatnonzero(data.task == number) for number in range(len(data.tasks))]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Dictionaries of `frames`, `distances` and `task`, as in `LabelledFrames`."""
        while True:
            rng = np.random.default_rng([self._identity["seed"], self._rank, self._step])
            tasks = rng.integers(len(self._of_task), size=self._count)
            rows = np.array([rng.choice(self._of_task[task]) for task in tasks])
            self._step += 1
            data = self._data
            yield {"frames": data.frames[rows], "distances": data.distances[rows], "task": data.task[rows]}

    def state_dict(self) -> dict[str, Any]:
        """Number of steps done, and what the order depends on."""
        return {**self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            UserError: the position is of another order.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved position has {key} {state.get(key)}, this run {value}",
                    where="labelled frames",
                    remedy="resume with the store and settings of the original run, or start a new one",
                )
        self._step = int(state["step"])
