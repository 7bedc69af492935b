"""What every worker of an alignment job did and when, as a Chrome trace: logs/trace.json.

One process per role, one thread per worker, in it every call that it worked on with the numbers of its groups and the
version of its weights; weights that were offered to a worker in the middle of a call have a lane of their own beneath.
The driver's process holds updates, weights on their way, evaluations and checkpoints.
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
_OFFERS = 1_000_000  # added to a worker's lane; more workers than that no role has


class RunTrace(Observer):
    """An observer that writes a trace.

    Args:
        file: where to; whoever opened it closes it.
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
        """A span in its worker's lane."""
        about = {**call.about, **({"failed": answer.reason} if isinstance(answer, Failed) else {})}
        lane = self._lane(call.worker)
        if call.group is not None:
            lane = self._offers(call.worker)
            began = max(began, self._offered.get(lane, began))  # offers to one worker wait for one another
            self._offered[lane] = ended
        self._file.span(call.what, lane, began, ended, kind="call", about=about)
        if not isinstance(answer, Failed):
            self._follow(call, began, ended)

    def lost(self, worker: Worker, failed: Failed) -> None:
        """An instant in its lane."""
        if worker.pool.together:
            self._update = self._packing = None  # what it was in the middle of never ends
        about = {"reason": failed.reason, "kind": failed.kind}
        self._file.instant("worker lost", self._lane(worker), time.monotonic(), kind="loss", about=about)

    def started(self, worker: Worker) -> None:
        """An instant in its lane."""
        about = {"restarts": worker.restarts}
        self._file.instant("worker started", self._lane(worker), time.monotonic(), kind="loss", about=about)

    def turned(self) -> None:
        """What has waited for a second goes to the file."""
        self._file.flush(now=False)

    @contextmanager
    def span(self, name: str, **about: Any) -> Iterator[None]:
        """Something that the driver does: an evaluation, a checkpoint."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._file.span(name, (DRIVER, PAUSES), began, time.monotonic(), kind="driver", about=about)

    def _follow(self, call: Call, began: float, ended: float) -> None:
        """An update lasts from the ranks' call to the one that publishes; then its weights are on their way."""
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
