"""Endless batches for training, made by Ray Data in bursts, in a separate process.

    BurstStream   tasks, in order ──► Ray Data ──rows──► batches
                  (pure: seed and position)               NumPy, in the tasks' order
    Feed          the same stream in an actor: batches, each with the position after it

A stream's tasks follow from its position; Ray Data only runs them. So a position is a few numbers, and a restarted
stream continues with exactly the next row, regardless of what was in flight.

Ray Data runs in bursts: one short execution makes the rows of the next few tasks while the previous rows are consumed;
then nothing runs until they are used up. One endless execution would poll whenever the consumer is slower (measured:
half a core, which a CPU trainer cannot spare). At most two bursts are held.

Ray Data's scheduler is a busy Python thread. In the trainer's process it would compete for the interpreter lock with
every small tensor operation (measured: a training step of 0.3 s took 1.3 s). So it runs in an actor, and the trainer
requests a few batches ahead.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from roboalign_ray.foundation.failures import UserError

# The newer Parquet reader starts dozens of actors; nothing here needs it.
os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")

_AHEAD = 3  # batches requested before they are needed
_DEADLINE_S = 600.0  # limit for one burst or batch, which takes seconds

Batch = dict[str, Any]


class BurstStream(ABC):
    """Batches of rows in an order that depends only on the settings and the position.

    Args:
        identity: plain values that the order depends on.
        batch_size: rows per batch.
        reader: makes blocks of rows from one task, in a Ray Data task; picklable.
        burst: tasks per burst.
        at_once: tasks that run at the same time.
    """

    name = "stream"  # name of the stream in messages

    def __init__(
        self, identity: Mapping[str, Any], batch_size: int, reader: Callable, *, burst: int, at_once: int = 1
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}", where=self.name)
        self._identity, self._batch_size = dict(identity), batch_size
        self._reader, self._burst, self._at_once = reader, burst, at_once

    @abstractmethod
    def tasks(self) -> Iterator[dict[str, Any]]:
        """Yield the reader's tasks without end, from the position on."""

    @abstractmethod
    def position(self) -> dict[str, int]:
        """The position of the stream."""

    @abstractmethod
    def go_to(self, position: Mapping[str, Any]) -> None:
        """Go to a position; `position` may have additional keys."""

    @abstractmethod
    def advance(self) -> None:
        """Advance the position by one batch."""

    def __iter__(self) -> Iterator[Batch]:
        """Endless batches: arrays, and lists of strings.

        The position advances when a batch is returned. Leaving the loop stops the work.
        """
        parts: list[Batch] = []
        missing = self._batch_size
        for block in self._blocks():
            while _length(block):
                parts.append({name: values[:missing] for name, values in block.items()})
                block = {name: values[missing:] for name, values in block.items()}
                missing -= _length(parts[-1])
                if missing == 0:
                    self.advance()
                    yield _joined(parts)
                    parts, missing = [], self._batch_size

    def state_dict(self) -> dict[str, Any]:
        """The position and the values that the order depends on."""
        return {**self._identity, **self.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the next iteration begins with the row after it.

        Raises:
            UserError: the state belongs to a stream with another order.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved position has {key} {state.get(key)}, this stream {value}",
                    where=self.name,
                    remedy="resume with the settings and data of the original run, or start a new one",
                )
        self.go_to(state)

    def _blocks(self) -> Iterator[Batch]:
        """Yield rows in the tasks' order; the next burst is made while the last one is returned."""
        tasks = self.tasks()

        def burst() -> Any:
            return _run_tasks(list(islice(tasks, self._burst)), self._reader, self._at_once)

        with ThreadPoolExecutor(1, thread_name_prefix=self.name) as background:
            following = background.submit(burst)
            while True:
                made = following.result(timeout=_DEADLINE_S)
                following = background.submit(burst)
                yield from made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)


class Feed:
    """A stream that runs in an actor, with the same batches and positions."""

    def __init__(self, stream: BurstStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Batch]:
        """Endless batches; the position advances when a batch is returned."""
        import ray

        from roboalign_ray.pipelines.cluster.runtime import wait

        actor: Any = ray.remote(num_cpus=0)(_Batches).remote(self._stream)
        pending = deque(actor.next.remote() for _ in range(_AHEAD))
        try:
            while True:
                [(batch, position)] = wait([pending.popleft()], _DEADLINE_S, self._stream.name)
                pending.append(actor.next.remote())
                self._stream.load_state_dict(position)
                # Arrays from Ray's object store are read-only, which makes torch warn.
                yield {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in batch.items()}
        finally:
            ray.kill(actor)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last returned batch."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; errors as `BurstStream.load_state_dict`."""
        self._stream.load_state_dict(state)


class _Batches:
    """The actor: it returns batches of a stream, one per call."""

    def __init__(self, stream: BurstStream) -> None:
        self._stream = stream
        self._batches = iter(stream)

    def next(self) -> tuple[Batch, dict[str, Any]]:
        """The next batch and the position after it."""
        return next(self._batches), self._stream.state_dict()


def ordered_dataset(rows: list[dict[str, Any]]) -> Any:
    """A lazy, silent dataset in the order of these rows. Each row is one block, so each task gets one row."""
    import ray.data

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    context = dataset.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    return dataset


def _run_tasks(tasks: list[dict[str, Any]], reader: Callable, at_once: int) -> Any:
    from ray.data import TaskPoolStrategy

    made = ordered_dataset(tasks).map_batches(
        reader,
        batch_size=1,
        batch_format="numpy",
        num_cpus=0,  # trainers may reserve every CPU, and reading must not wait for them
        compute=TaskPoolStrategy(size=at_once),
    )
    return made.materialize()


def _length(block: Batch) -> int:
    return len(next(iter(block.values())))


def _joined(parts: list[Batch]) -> Batch:
    """One batch with its own memory, since blocks are read-only in Ray's object store."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {
        name: values.tolist() if values.dtype.kind in "OUT" else values for name, values in joined.items()
    }
