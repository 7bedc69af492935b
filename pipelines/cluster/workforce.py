"""The workers of an alignment job: who is free, what each is doing, whether it lives, who takes a lost one's place.

    send ──► calls under way ──► turn: answers · heartbeats · deadlines ──► `then(call, answer)`

Every call is answered exactly once, with its value or with `Failed`. A worker that is lost, hangs or passes its role's
deadline is ended, all its calls fail, and a new one is started in its place as often as the role's `max_restarts` says.
Only a worker that has loaded everything is given work. One thread does all this; nothing here knows what a group is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from roboalign_ray.config.asynchrony import LivenessConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.pipelines.cluster.runtime import BEAT, RoleFailure, settle, spawn, stop
from roboalign_ray.pipelines.cluster.worker_pool import (
    Call,
    Interceptor,
    Observer,
    RoleLost,
    Worker,
    WorkerPool,
)

_CHECK_S = 0.25  # between looks at heartbeats and deadlines
_FETCH_S = 60.0  # for an answer's numbers, which are ready


class Workforce:
    """All calls to all workers, in one place to wait at.

    Attributes:
        lost: workers that were lost, hung or late, ever.
        observers: called after every event.
        interceptors: called with every reply before anything else is.
    """

    def __init__(self, pools: Sequence[WorkerPool], liveness: LivenessConfig) -> None:
        self.pools, self.liveness, self.lost = list(pools), liveness, 0
        self.observers: list[Observer] = []
        self.interceptors: list[Interceptor] = []
        self._pending: dict[Any, Call] = {}
        self._check_at = 0.0

    def send(
        self,
        worker: Worker,
        method: str,
        *arguments: Any,
        then: Callable[[Call, Any], None],
        size: int = 0,
        returns: int = 1,
        group: str | None = None,
        progresses: bool = True,
        about: Mapping[str, Any] | None = None,
    ) -> Call:
        """Call a worker's method; `then` is told the answer, or `Failed`.

        Args:
            size: groups in it.
            returns: values of the method, of which the last is the answer.
            group, progresses: see `Call`.
            about: for observers, see `Call`.
        """
        options = {"num_returns": returns} | ({"concurrency_group": group} if group else {})
        answered = getattr(worker.actor, method).options(**options).remote(*arguments)
        *values, reference = answered if returns > 1 else (answered,)
        now = time.monotonic()
        call = Call(worker, method, size, values, then, now, about or {}, group, progresses)
        if group is None:
            if not worker.calls:
                worker.since = worker.same_since = now
            worker.calls.append(call)
        self._pending[reference] = call
        return call

    def turn(self, timeout_s: float) -> None:
        """Wait until something is answered, or for so long; then see to all that is, and to heartbeats and deadlines.

        Raises:
            UserError: a worker met bad input.
            RoleLost: of workers that cannot go on without each other one was lost.
            RoleFailure: none is left of a role.
        """
        for reference in self._answered(timeout_s):
            call = self._pending.pop(reference, None)
            if call is not None:  # else its worker was lost a moment ago
                self._settle(reference, call)
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK_S
            for pool in self.pools:
                for worker in list(pool.workers):
                    self._check(worker, now)
        for observer in self.observers:
            observer.turned()

    def resize(self, pool: WorkerPool, workers: int) -> None:
        """Start workers, or end idle ones, towards that many."""
        while len(pool.workers) < workers:
            self._start(pool.another())
        idle = [worker for worker in reversed(pool.workers) if worker.up and not worker.calls]
        for worker in idle[: max(0, len(pool.workers) - workers)]:
            self._forget(worker)
            stop([worker.actor])
            pool.workers.remove(worker)

    def dismiss(self, pool: WorkerPool) -> None:
        """End a pool's workers for good, whatever they are doing."""
        for worker in pool.workers:
            self._forget(worker)
        stop(pool.actors)
        self.pools.remove(pool)

    def disregard(self) -> None:
        """Nobody cares any more for what is under way; the workers are free when they are done with it."""
        for call in self._pending.values():
            if call is not call.worker.beat and call.worker.up:
                call.then = _ignore

    def close(self) -> None:
        """End all workers."""
        self._pending.clear()
        for pool in self.pools:
            stop(pool.actors)

    # --- answers -------------------------------------------------------------------------------------------------

    def _answered(self, timeout_s: float) -> Iterator[Any]:
        references = list(self._pending)
        if not references:
            time.sleep(min(timeout_s, _CHECK_S))
            return
        # All that are there; only where there is none, the first that comes.
        done, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        if not done:
            wait_s = min(timeout_s, _CHECK_S)
            done, _ = ray.wait(references, num_returns=1, timeout=wait_s, fetch_local=False)
        yield from done

    def _settle(self, reference: Any, call: Call) -> None:
        worker, now = call.worker, time.monotonic()
        [answer] = settle([reference], _FETCH_S, f"{call.what} of {worker.name}", numbered=False)
        if isinstance(answer, Failed) and answer.kind == "worker_lost":
            self._pending[reference] = call
            self._lose(worker, answer)
            return
        began = call.sent
        if call in worker.calls:
            worker.calls.remove(call)
            began = worker.since
            call.seconds = now - began
            worker.since = worker.same_since = now
        if call is not worker.beat:
            for interceptor in self.interceptors:
                answer = interceptor.reply(call, answer)
            for observer in self.observers:
                observer.answered(call, answer, began, now)
        call.then(call, answer)

    # --- life and death --------------------------------------------------------------------------------------------

    def _check(self, worker: Worker, now: float) -> None:
        liveness, deadline = self.liveness, worker.pool.role.deadline_s
        if worker.calls and now - worker.since > deadline:
            reason = f"{worker.name}: no answer to {worker.calls[0].what} within {deadline:g} s"
            self._lose(worker, Failed(reason, "deadline"))
        elif worker.beat is not None:
            if now - worker.beat_at > liveness.silence_s:
                reason = f"{worker.name}: no sign of life for {liveness.silence_s:g} s"
                self._lose(worker, Failed(reason, "worker_hung"))
        elif worker.up and now - worker.beat_at >= liveness.every_s:
            worker.beat_at = now
            worker.beat = self.send(worker, "beat", then=self._beaten, group=BEAT)

    def _beaten(self, call: Call, answer: Any) -> None:
        worker = call.worker
        worker.beat = None
        if isinstance(answer, Failed):
            self._lose(worker, answer)
        elif not worker.calls or not worker.calls[0].progresses or answer != worker.progress:
            worker.progress, worker.same_since = answer, call.sent
        elif call.sent - worker.same_since > self.liveness.stall_s:
            # Two heartbeats so far apart found the same: not the driver's own pauses, but the worker's standstill.
            reason = f"{worker.name}: no progress in {worker.calls[0].what} for {self.liveness.stall_s:g} s"
            self._lose(worker, Failed(reason, "worker_hung"))

    def _lose(self, worker: Worker, failed: Failed) -> None:
        """End it for good, start another in its place, and fail what it had."""
        now = time.monotonic()
        for observer in self.observers:
            if worker.calls:  # what waited behind it has not begun
                observer.answered(worker.calls[0], failed, worker.since, now)
            observer.lost(worker, failed)
        pool, calls = worker.pool, self._forget(worker)
        self.lost += 1
        stop([worker.actor])
        if pool.together:
            raise RoleLost(failed.reason)
        if worker.restarts < pool.role.max_restarts:
            worker.restarts += 1
            self._start(worker)
        else:
            pool.workers.remove(worker)
            if not pool.workers:
                raise RoleFailure(f"no {pool.name} worker is left; the last one: {failed.reason}")
        for call in calls:
            call.then(call, failed)

    def _forget(self, worker: Worker) -> list[Call]:
        """Its calls, which nobody waits for any more."""
        mine = {reference: call for reference, call in self._pending.items() if call.worker is worker}
        for reference in mine:
            del self._pending[reference]
        worker.calls.clear()
        calls = [call for call in mine.values() if call is not worker.beat]
        worker.beat, worker.up, worker.progress = None, False, -1
        return calls

    def _start(self, worker: Worker) -> None:
        [worker.actor] = spawn(worker.pool.cls, worker.pool.role, [worker.arguments])
        self.send(worker, "ready", then=self._started)

    def _started(self, call: Call, answer: Any) -> None:
        worker = call.worker
        if not isinstance(answer, Failed):
            worker.up = True
            for observer in self.observers:
                observer.started(worker)
        elif worker.actor is not None and worker in worker.pool.workers and not worker.calls:
            self._lose(
                worker, answer
            )  # it could not load; a worker lost while loading has been replaced already


def _ignore(call: Call, answer: Any) -> None:
    """What becomes of an answer that nobody waits for."""
