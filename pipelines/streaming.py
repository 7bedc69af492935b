"""Windows for training as an endless stream of batches, made by Ray Data.

    WindowPlan ──chunks──► Ray Data tasks ──windows──► batches
    (index only)           read, decode, cut           NumPy, in the plan's order

The plan says which windows come in which order; tasks only carry it out. So the stream's position is two numbers, and
a restarted stream goes on with exactly the next window, whatever was in flight.

Ray Data runs in bursts: one short execution makes the next few chunks while the last ones are consumed, then nothing
runs until they are used up. One endless execution would poll for as long as the consumer is the slower side (measured:
half a core, which a CPU trainer cannot spare). At most two bursts are held, so memory is bounded by
2 * decoders * shuffle_buffer windows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.store import EpisodeStore, open_store, resolve_store
from roboalign_ray.episodes.windows import Chunk, Window, WindowPlan, WindowSpec
from roboalign_ray.foundation.failures import UserError

# The newer Parquet reader starts dozens of actors; nothing here needs it.
os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")

_WINDOWS_PER_BLOCK = 32
_DEADLINE_S = 600.0  # for one burst; it takes seconds

Batch = dict[str, Any]


class WindowStream:
    """Batches of windows, epoch after epoch, in an order that depends on the seed alone.

    Args:
        store_path: episode store, or "shipped".
        episodes_config: split fraction and shuffle size; view and stride are the spec's.
        spec: what a window is.
        batch_size: windows per batch, B.
        seed: of order and draws.
        split: "train" or "held_out".
        rank, world_size: this consumer's share; shares are disjoint.
        decoders: chunks decoded at the same time, each by one Ray task.

    Raises:
        UserError: no such store, or no episode of the split that is long enough.
    """

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
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}", where="window stream")
        self._store_path = resolve_store(store_path).absolute()
        self._spec, self._batch_size, self._decoders = spec, batch_size, decoders
        self._identity = {
            "seed": seed,
            "split": split,
            "rank": rank,
            "world_size": world_size,
            "shuffle_buffer": episodes_config.shuffle_buffer,
            "spec": asdict(spec),
        }
        self._plan = WindowPlan(
            open_store(self._store_path),
            spec,
            seed=seed,
            split=split,
            held_out_fraction=episodes_config.held_out_fraction,
            shuffle_windows=episodes_config.shuffle_buffer,
            rank=rank,
            world_size=world_size,
        )
        self._epoch, self._windows = 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """Endless batches: context uint8 [B, H, W, 3], frames uint8 [B, n, H, W, 3], actions float32 [B, n, A],
        instruction and episode_id lists of B strings.

        The position moves on when a batch is handed out. Leaving the loop stops the decoding.
        """
        parts: list[Batch] = []
        missing = self._batch_size
        for block in self._blocks():
            while len(block["start"]):
                taken, block = _split(block, missing)
                parts.append(taken)
                missing -= len(taken["start"])
                if missing == 0:
                    self._advance(self._batch_size)
                    yield _joined(parts)
                    parts, missing = [], self._batch_size

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch and windows handed out in it, with what the order depends on."""
        return {**self._identity, "epoch": self._epoch, "windows": self._windows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the next iteration begins with the window after it.

        Raises:
            UserError: the state belongs to a stream of another order.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved position has {key} {state.get(key)}, this stream {value}",
                    where="window stream",
                    remedy="resume with the settings the run began with, or start a new one",
                )
        self._epoch, self._windows = int(state["epoch"]), int(state["windows"])

    def _advance(self, windows: int) -> None:
        self._windows += windows
        while self._windows >= (size := self._epoch_size(self._epoch)):
            self._epoch, self._windows = self._epoch + 1, self._windows - size

    def _epoch_size(self, epoch: int) -> int:
        return sum(len(chunk.windows) for chunk in self._plan.chunks(epoch))

    def _remaining(self) -> Iterator[Chunk]:
        """Chunks from the position on, without end; the first is cut where the position lies within it."""
        epoch, skip = self._epoch, self._windows
        while True:
            for chunk in self._plan.chunks(epoch):
                if skip >= len(chunk.windows):
                    skip -= len(chunk.windows)
                    continue
                yield chunk.skip(skip)
                skip = 0
            epoch += 1

    def _blocks(self) -> Iterator[Batch]:
        """Windows in the plan's order; the next burst is made while the last one is handed out."""
        remaining = self._remaining()

        def burst() -> Any:
            chunks = [next(remaining) for _ in range(self._decoders)]
            return _dataset(chunks, self._store_path, self._spec, self._decoders).materialize()

        with ThreadPoolExecutor(1, thread_name_prefix="windows") as background:
            following = background.submit(burst)
            while True:
                made = following.result(timeout=_DEADLINE_S)
                following = background.submit(burst)
                yield from made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)


def _dataset(chunks: list[Chunk], store_path: Path, spec: WindowSpec, decoders: int) -> Any:
    """A lazy dataset of the chunks' windows, one row each, in order."""
    import ray
    from ray.data import TaskPoolStrategy

    rows = [{"seed": chunk.seed, "epoch": chunk.epoch, "windows": chunk.windows} for chunk in chunks]
    # One block per chunk: a task then holds one chunk's episodes.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.enable_rich_progress_bars = False
    return dataset.map_batches(
        _ChunkReader(store_path, spec),
        batch_size=1,
        batch_format="numpy",
        # Trainers may hold every CPU; decoding for them must not wait until they are done.
        num_cpus=0,
        compute=TaskPoolStrategy(size=decoders),
    )


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


_stores: dict[Path, EpisodeStore] = {}


def _opened(path: Path) -> EpisodeStore:
    if path not in _stores:
        _stores[path] = open_store(path)
    return _stores[path]


def _stacked(windows: list[Window]) -> Batch:
    return {
        "context": np.stack([window.context for window in windows]),
        "frames": np.stack([window.frames for window in windows]),
        "actions": np.stack([window.actions for window in windows]),
        "instruction": np.array([window.instruction for window in windows], dtype=object),
        "episode_id": np.array([window.episode_id for window in windows], dtype=object),
        "start": np.array([window.start for window in windows]),
    }


def _split(block: Batch, count: int) -> tuple[Batch, Batch]:
    head = {name: values[:count] for name, values in block.items()}
    return head, {name: values[count:] for name, values in block.items()}


def _joined(parts: list[Batch]) -> Batch:
    """One batch that owns its memory: blocks live in Ray's shared store, read only."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name in ("instruction", "episode_id"):
        joined[name] = joined[name].tolist()
    return joined
