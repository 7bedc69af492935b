"""Windows as an endless stream of training batches.

    WindowPlan ──chunks──► Ray Data tasks ──windows──► batches
    (index only)           read, decode, cut           NumPy, in the plan's order

The plan gives the windows and their order, so the stream's position is two numbers. At most
2 * decoders * shuffle_buffer windows are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import EpisodesConfig, JobConfig
from roboalign_ray.episodes.store import open_store, resolve_store
from roboalign_ray.episodes.windows import Chunk, Window, WindowPlan, WindowSpec
from roboalign_ray.pipelines.train.batch_feed import Batch, BurstStream, Feed
from roboalign_ray.pipelines.train.train_job import check_shares

_WINDOWS_PER_BLOCK = 32


class WindowStream(BurstStream):
    """Batches of windows, epoch after epoch, in an order that depends only on the seed.

    A batch holds context uint8 [B, H, W, 3], frames uint8 [B, n, H, W, 3], actions float32 [B, n, A], instruction and
    episode_id lists of B strings, and start int64 [B]. Where the spec names views, frames are [B, n, V, H, W, 3] and
    contexts [B, V, H, W, 3].

    Args:
        store_path: episode store, or "shipped".
        episodes_config: split fraction and shuffle size; views and stride are the spec's.
        spec: length, stride, view and size of a window.
        batch_size: windows per batch, B.
        seed: seed of the order and the random draws.
        split: "train" or "held_out".
        rank, world_size: this consumer's share; shares are disjoint.
        decoders: chunks decoded at the same time, each by one Ray task.

    Raises:
        UserError: there is no such store, or no episode of the split is long enough.
    """

    name = "window stream"

    def __init__(
        self,
        store_path: str | Path,
        episodes_config: EpisodesConfig,
        spec: WindowSpec,
        batch_size: int,
        seed: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        decoders: int = 1,
    ) -> None:
        identity = {
            "seed": seed,
            "split": split,
            "rank": rank,
            "world_size": world_size,
            "shuffle_buffer": episodes_config.shuffle_buffer,
            "spec": _plain(spec),
        }
        path = resolve_store(store_path).absolute()
        super().__init__(identity, batch_size, _ChunkReader(path, spec), burst=decoders, at_once=decoders)
        self._plan = WindowPlan(
            open_store(path),
            spec,
            seed=seed,
            split=split,
            held_out_fraction=episodes_config.held_out_fraction,
            shuffle_windows=episodes_config.shuffle_buffer,
            rank=rank,
            world_size=world_size,
        )
        self._epoch, self._windows = 0, 0

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Chunks from the position on; the first is cut if the position is inside it."""
        epoch, skip = self._epoch, self._windows
        while True:
            for chunk in self._plan.chunks(epoch):
                if skip >= len(chunk.windows):
                    skip -= len(chunk.windows)
                    continue
                yield asdict(chunk.skip(skip))
                skip = 0
            epoch += 1

    def position(self) -> dict[str, int]:
        """The epoch, and the number of windows returned in it."""
        return {"epoch": self._epoch, "windows": self._windows}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Go to a position returned by `position`."""
        self._epoch, self._windows = int(position["epoch"]), int(position["windows"])

    def advance(self) -> None:
        """Advance by one batch, which may span several epochs."""
        self._windows += self._batch_size
        while self._windows >= (size := self._epoch_size(self._epoch)):
            self._epoch, self._windows = self._epoch + 1, self._windows - size

    def _epoch_size(self, epoch: int) -> int:
        return sum(len(chunk.windows) for chunk in self._plan.chunks(epoch))


def window_feed(config: JobConfig, spec: WindowSpec, windows_per_step: int) -> Feed:
    """This training worker's share of a job's windows.

    Args:
        windows_per_step: windows over all workers.

    Raises:
        UserError: as `WindowStream`, or the windows do not divide among the workers.
    """
    import ray.train

    context = ray.train.get_context()
    workers = context.get_world_size()
    check_shares(windows_per_step, "windows", workers, where="windows_per_step")
    stream = WindowStream(
        config.episodes.store,
        config.episodes,
        spec,
        windows_per_step // workers,
        config.seed,
        rank=context.get_world_rank(),
        world_size=workers,
    )
    return Feed(stream)


class _ChunkReader:
    """Turns one planned chunk into blocks of windows; opens the store once per process."""

    def __init__(self, store_path: Path, spec: WindowSpec) -> None:
        self._store_path, self._spec = store_path, spec

    def __call__(self, row: Mapping[str, np.ndarray]) -> Iterator[Batch]:
        windows = tuple((int(number), int(draw)) for number, draw in row["windows"][0])
        chunk = Chunk(int(row["seed"][0]), int(row["epoch"][0]), windows)
        block: list[Window] = []
        for window in chunk.read(_opened(self._store_path), self._spec):
            block.append(window)
            if len(block) == _WINDOWS_PER_BLOCK:
                yield _stacked(block)
                block = []
        if block:
            yield _stacked(block)


_opened = cache(open_store)  # opened once per process


def _plain(spec: WindowSpec) -> dict[str, Any]:
    """A spec as JSON types; of one view it is what earlier versions saved, so their positions stay valid."""
    fields = asdict(spec)
    views = list(fields.pop("views"))
    return {**fields, "views": views} if views else fields


def _stacked(windows: list[Window]) -> Batch:
    return {
        "context": np.stack([window.context for window in windows]),
        "frames": np.stack([window.frames for window in windows]),
        "actions": np.stack([window.actions for window in windows]),
        "instruction": np.array([window.instruction for window in windows], dtype=object),
        "episode_id": np.array([window.episode_id for window in windows], dtype=object),
        "start": np.array([window.start for window in windows]),
    }
