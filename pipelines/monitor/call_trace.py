"""A Chrome trace of the calls of all workers of an alignment job: logs/trace.json.

The trace has one process per role and one thread per worker, with every call, its group numbers and its weight version.
Weights offered to a worker during a call are in a separate lane below. The driver's process has updates, weight
updates, evaluations and checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.telemetry.chrome_trace import TraceFile
from roboalign_ray.pipelines.cluster.worker_pool import Call, Observer, Worker

DRIVER, UPDATES, PAUSES = 0, 1, 2  # the driver's process and its lanes
_OFFERS = 1_000_000  # offset of the lane for offers; no role has more workers than that


class RunTrace(Observer):
    """An observer that writes a trace.

    Args:
        file: open file for the trace; the caller closes it.
    """

    def __init__(self, file: TraceFile) -> None:
        self._file = file
        self._processes: dict[str, int] = {}
        self._offered: dict[tuple[int, int], float] = {}
        self._update: tuple[float, dict[str, Any]] | None = None
        self._packing: float | None = None
        file.lane(DRIVER, UPDATES, "driver", "updates")
        file.lane(DRIVER, PAUSES, "driver", "evaluations, checkpoints")

    def answered(self, call: Call, answer: Any, began: float, ended: float) -> None:
        """Write a span into the worker's lane."""
        about = {**call.about, **({"failed": answer.reason} if isinstance(answer, Failed) else {})}
        lane = self._lane(call.worker)
        if call.group is not None:
            lane = self._offers(call.worker)
            began = max(began, self._offered.get(lane, began))  # offers to one worker are sequential
            self._offered[lane] = ended
        self._file.span(call.what, lane, began, ended, kind="call", about=about)
        if not isinstance(answer, Failed):
            self._follow(call, began, ended)

    def lost(self, worker: Worker, failed: Failed) -> None:
        """An instant in its lane."""
        if worker.pool.together:
            self._update = self._packing = None  # its unfinished calls never end
        about = {"reason": failed.reason, "kind": failed.kind}
        self._file.instant("worker lost", self._lane(worker), time.monotonic(), kind="loss", about=about)

    def started(self, worker: Worker) -> None:
        """An instant in its lane."""
        about = {"restarts": worker.restarts}
        self._file.instant("worker started", self._lane(worker), time.monotonic(), kind="loss", about=about)

    def turned(self) -> None:
        """Flush events that are older than a second to the file."""
        self._file.flush(now=False)

    @contextmanager
    def span(self, name: str, **about: Any) -> Iterator[None]:
        """Write a span of the driver: an evaluation or a checkpoint."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._file.span(name, (DRIVER, PAUSES), began, time.monotonic(), kind="driver", about=about)

    def _follow(self, call: Call, began: float, ended: float) -> None:
        """Write the driver's spans: an update, from the ranks' call to the publishing call, then the weight update."""
        if call.what == "update" and self._update is None:
            self._update = (began, dict(call.about))
        elif call.what == "publish" and self._update is not None and self._packing is None:
            self._packing = call.sent
        elif call.what == "take_buckets" and self._update is not None and self._packing is not None:
            (start, about), version = self._update, self._update[1].get("version", 0)
            lane = (DRIVER, UPDATES)
            self._file.span(f"update {version}", lane, start, self._packing, kind="driver", about=about)
            made = {"version": version + 1}
            self._file.span(f"weights {version + 1}", lane, self._packing, ended, kind="driver", about=made)
            self._update = self._packing = None

    def _lane(self, worker: Worker) -> tuple[int, int]:
        name = worker.pool.name
        process = self._processes.setdefault(name, DRIVER + 1 + len(self._processes))
        self._file.lane(process, worker.number + 1, name, worker.name)
        return process, worker.number + 1

    def _offers(self, worker: Worker) -> tuple[int, int]:
        process, thread = self._lane(worker)
        self._file.lane(process, _OFFERS + thread, worker.pool.name, f"{worker.name}, offers")
        return process, _OFFERS + thread
