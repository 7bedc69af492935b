"""Pools of workers with their pending calls, and the hooks that are called with answers.

    pool ──► worker slots ──► pending calls

`Workforce` handles the calls and the loss of workers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roboalign_ray.config import RoleConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, settle, spawn


class RoleLost(RoleFailure):
    """The learner failed: a rank or its weights were lost. New workers resume from the last checkpoint."""


@dataclass(eq=False)
class Call:
    """One pending remote call.

    Attributes:
        size: number of groups in it.
        values: references to results that stay in the object store; the answer is returned after them.
        about: details for observers: group numbers, weight version. JSON types.
        group: concurrency group of the call; None is the worker's main thread.
        progresses: whether the heartbeat's counter grows while it runs; if not, only the deadline limits it.
        seconds: duration of the work, set when the call is answered.
    """

    worker: Worker
    what: str
    size: int
    values: list[Any]
    then: Callable[[Call, Any], None]
    sent: float
    about: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    progresses: bool = True
    seconds: float = 0.0


@dataclass(eq=False)
class Worker:
    """One worker slot of a pool; the actor in it may be replaced.

    Attributes:
        up: whether it has loaded everything.
        calls: its pending calls in order, without heartbeats and weight offers.
        since: when the first of them began.
    """

    pool: WorkerPool
    arguments: dict[str, Any]
    number: int
    actor: Any = None
    up: bool = False
    restarts: int = 0
    calls: deque[Call] = field(default_factory=deque)
    since: float = 0.0
    beat: Call | None = None
    beat_at: float = 0.0
    progress: int = -1
    same_since: float = 0.0

    @property
    def name(self) -> str:
        """The worker's name in messages."""
        return f"{self.pool.name} {self.number + 1}"

    @property
    def load(self) -> int:
        """Number of groups in its pending calls."""
        return sum(call.size for call in self.calls)


class Observer:
    """Called after every event in the driver's single thread, with times of `time.monotonic`. Changes nothing."""

    def answered(self, call: Call, answer: Any, began: float, ended: float) -> None:
        """Called when a call ends with a value or `Failed`. Calls of one worker never overlap. Not for heartbeats."""

    def lost(self, worker: Worker, failed: Failed) -> None:
        """Called when a worker is lost, hangs or exceeds its deadline."""

    def started(self, worker: Worker) -> None:
        """Called when a worker that was started during the job has loaded everything."""

    def turned(self) -> None:
        """Called at the end of each turn."""


class Interceptor:
    """May change a reply before the job and the observers get it. Only fault injection needs this."""

    def reply(self, call: Call, answer: Any) -> Any:
        """Return the answer for the job and the observers; `call.values` may be replaced too.

        Not called for heartbeats.
        """
        return answer


class WorkerPool:
    """The workers of one role.

    Args:
        arguments: keyword arguments of `cls`, one entry per worker.
        together: whether the workers depend on each other: the loss of one then raises `RoleLost`.
        start_s: deadline of loading, seconds; None: the role's deadline of a call.
    """

    def __init__(
        self,
        name: str,
        cls: type,
        role: RoleConfig,
        arguments: Sequence[dict[str, Any]],
        *,
        together: bool = False,
        start_s: float | None = None,
    ) -> None:
        self.name, self.cls, self.role, self.together = name, cls, role, together
        self.start_s = role.deadline_s if start_s is None else start_s
        self._arguments = arguments[0]
        self._numbers = len(arguments)
        actors = spawn(cls, role, arguments)
        self.workers = [
            Worker(self, keywords, number, actor)
            for number, (keywords, actor) in enumerate(zip(arguments, actors, strict=True))
        ]

    @property
    def actors(self) -> list[Any]:
        """The actor handles of all workers."""
        return [worker.actor for worker in self.workers]

    @property
    def up(self) -> int:
        """Number of workers that can receive work."""
        return sum(worker.up for worker in self.workers)

    def free(self, size: int = 1, depth: int = 0) -> Worker | None:
        """The least busy worker that is idle, or that with `size` more groups stays within `depth`; None if none is."""
        fit = [w for w in self.workers if w.up and (not w.calls or w.load + size <= depth)]
        return min(fit, key=lambda worker: (worker.load, worker.number), default=None)

    def load(self) -> Callable[[], None]:
        """Start loading in all workers. The returned function waits until all have loaded and marks them as up.

        A worker that is lost while it loads is replaced, at most `max_restarts` times.

        Raises:
            UserError: bad input found while loading.
            RoleFailure: a worker was lost too often or failed otherwise, or the deadline passed.
        """
        loading = {worker: worker.actor.ready.remote() for worker in self.workers}
        ends = time.monotonic() + self.start_s

        def loaded() -> None:
            while loading:
                left = list(loading)
                references = [loading[worker] for worker in left]
                answers = settle(references, max(0.0, ends - time.monotonic()), f"{self.name} start")
                for worker, answer in zip(left, answers, strict=True):
                    if not isinstance(answer, Failed):
                        del loading[worker]
                        continue
                    if answer.kind != "worker_lost" or worker.restarts >= self.role.max_restarts:
                        raise RoleFailure(answer.reason)
                    worker.restarts += 1
                    [worker.actor] = spawn(self.cls, self.role, [worker.arguments])
                    loading[worker] = worker.actor.ready.remote()
            self.mark_up()

        return loaded

    def mark_up(self) -> None:
        """Record that all workers have loaded everything."""
        for worker in self.workers:
            worker.up = True

    def add_slot(self) -> Worker:
        """Add a worker slot."""
        worker = Worker(self, self._arguments, self._numbers)
        self._numbers += 1
        self.workers.append(worker)
        return worker
