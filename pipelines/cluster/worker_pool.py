"""Workers and calls: what each is doing, who is free; and the hooks that are called as answers come.

    pool ──► workers, one place each ──► calls under way

What happens to calls and to lost workers is `Workforce`'s affair.
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
    """The learner cannot go on: a rank or its weights were lost; others take over from the last checkpoint."""


@dataclass(eq=False)
class Call:
    """One call under way.

    Attributes:
        size: groups in it.
        values: references to what it leaves where it is; the answer is what comes after them.
        about: what an observer may tell of it: group numbers, weight version. JSON types.
        group: of the worker's threads; None is the one that works.
        progresses: whether signs of life grow with its work; else the deadline alone says when it takes too long.
        seconds: of work, known when it has answered.
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
    """One worker's place in a pool; the actor in it may be replaced.

    Attributes:
        up: whether it has loaded everything.
        calls: those that it works on, in order; heartbeats and offers are not among them.
        since: when the first of them had its turn.
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
        """For messages."""
        return f"{self.pool.name} {self.number + 1}"

    @property
    def load(self) -> int:
        """Groups in its hands."""
        return sum(call.size for call in self.calls)


class Observer:
    """Called after every event in the driver's one thread, on the clock `time.monotonic`; changes nothing."""

    def answered(self, call: Call, answer: Any, began: float, ended: float) -> None:
        """A call is over, with a value or `Failed`. One worker's calls never overlap; heartbeats are not told."""

    def lost(self, worker: Worker, failed: Failed) -> None:
        """A worker was lost, hung or late."""

    def started(self, worker: Worker) -> None:
        """A worker that was started while the job ran has loaded everything."""

    def turned(self) -> None:
        """A turn is over."""


class Interceptor:
    """May change a reply before the job and the observers see it. Fault injection alone needs this."""

    def reply(self, call: Call, answer: Any) -> Any:
        """Return the answer that everybody else sees; `call.values` may be exchanged too. Heartbeats pass by."""
        return answer


class WorkerPool:
    """The workers of one role.

    Args:
        arguments: keyword arguments of `cls`, one entry per worker.
        together: whether they cannot go on without each other: losing one raises `RoleLost`.
    """

    def __init__(
        self,
        name: str,
        cls: type,
        role: RoleConfig,
        arguments: Sequence[dict[str, Any]],
        *,
        together: bool = False,
    ) -> None:
        self.name, self.cls, self.role, self.together = name, cls, role, together
        self._arguments = arguments[0]
        self._numbers = len(arguments)
        actors = spawn(cls, role, arguments)
        self.workers = [
            Worker(self, keywords, number, actor)
            for number, (keywords, actor) in enumerate(zip(arguments, actors, strict=True))
        ]

    @property
    def actors(self) -> list[Any]:
        """Their handles."""
        return [worker.actor for worker in self.workers]

    @property
    def up(self) -> int:
        """Workers that can be given work."""
        return sum(worker.up for worker in self.workers)

    def free(self, size: int = 1, depth: int = 0) -> Worker | None:
        """The least busy worker that has nothing to do, or whose `size` groups more stay within `depth`."""
        fit = [w for w in self.workers if w.up and (not w.calls or w.load + size <= depth)]
        return min(fit, key=lambda worker: (worker.load, worker.number), default=None)

    def load(self) -> Callable[[], None]:
        """All begin to load everything; what is returned waits until they have, and welcomes them.

        One that is lost meanwhile is replaced as often as its role's `max_restarts` says.

        Raises:
            UserError: bad input found while loading.
            RoleFailure: a worker was lost too often or failed otherwise, or the deadline passed.
        """
        loading = {worker: worker.actor.ready.remote() for worker in self.workers}
        ends = time.monotonic() + self.role.deadline_s

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
            self.welcome()

        return loaded

    def welcome(self) -> None:
        """All have loaded everything."""
        for worker in self.workers:
            worker.up = True

    def another(self) -> Worker:
        """A place for one worker more."""
        worker = Worker(self, self._arguments, self._numbers)
        self._numbers += 1
        self.workers.append(worker)
        return worker
