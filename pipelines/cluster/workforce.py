"""Manages the workers of an alignment job: free workers, pending calls, heartbeats, deadlines and replacements.

    send ──► pending calls ──► turn: answers · heartbeats · deadlines ──► `then(call, answer)`

Every call gets exactly one answer: its value or `Failed`. A worker that is lost, hangs or exceeds its role's deadline
is ended, all its calls fail, and a new actor replaces it, at most `max_restarts` times. Only a worker that has loaded
everything receives work. All of this runs in one thread. The module is independent of the content of groups.
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

_CHECK_S = 0.25  # interval between checks of heartbeats and deadlines
_FETCH_S = 60.0  # limit for fetching an answer that is ready


class Workforce:
    """All pending calls to all workers, with one method to wait for any of them.

    Attributes:
        lost: total number of workers that were lost, hung or exceeded their deadline.
        observers: called after every event.
        interceptors: called with every reply before the job and the observers.
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
        """Call a worker's method. `then` is called with the answer or `Failed`.

        Args:
            size: number of groups in the call.
            returns: number of values that the method returns; the last one is the answer.
            group, progresses: see `Call`.
            about: details for observers, see `Call`.
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
        """Wait for an answer, at most `timeout_s`; then handle all answers, heartbeats and deadlines.

        Raises:
            UserError: a worker found bad input.
            RoleLost: a worker of a pool whose workers depend on each other was lost.
            RoleFailure: a role has no worker left.
        """
        for reference in self._answered(timeout_s):
            call = self._pending.pop(reference, None)
            if call is not None:  # None if its worker was just lost
                self._settle(reference, call)
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK_S
            for pool in self.pools:
                for worker in list(pool.workers):
                    self._check(worker, now)
        for observer in self.observers:
            observer.turned()

    def replace(self, worker: Worker, failed: Failed) -> None:
        """End the worker's actor, start a replacement, and fail its calls.

        Raises:
            RoleLost: the workers of its pool depend on each other.
            RoleFailure: the pool has no worker left.
        """
        now = time.monotonic()
        for observer in self.observers:
            if worker.calls:  # the calls after the first have not begun
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

    def resize(self, pool: WorkerPool, workers: int) -> None:
        """Start workers, or end idle ones, to bring the pool to `workers` workers."""
        while len(pool.workers) < workers:
            self._start(pool.add_slot())
        idle = [worker for worker in reversed(pool.workers) if worker.up and not worker.calls]
        for worker in idle[: max(0, len(pool.workers) - workers)]:
            self._forget(worker)
            stop([worker.actor])
            pool.workers.remove(worker)

    def close_pool(self, pool: WorkerPool) -> None:
        """End all workers of a pool, including busy ones, and remove the pool."""
        for worker in pool.workers:
            self._forget(worker)
        stop(pool.actors)
        self.pools.remove(pool)

    def drop_callbacks(self) -> None:
        """Drop the callbacks of all pending calls. The workers still complete these calls."""
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
        # All ready answers; if there are none, wait for the first one.
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
            self.replace(worker, answer)
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

    # --- heartbeats and replacement --------------------------------------------------------------------------------

    def _check(self, worker: Worker, now: float) -> None:
        liveness, pool = self.liveness, worker.pool
        deadline = pool.role.deadline_s if worker.up else pool.start_s
        if worker.calls and now - worker.since > deadline:
            reason = f"{worker.name}: no answer to {worker.calls[0].what} within {deadline:g} s"
            self.replace(worker, Failed(reason, "deadline"))
        elif worker.beat is not None:
            if now - worker.beat_at > liveness.silence_s:
                reason = f"{worker.name}: no heartbeat for {liveness.silence_s:g} s"
                self.replace(worker, Failed(reason, "worker_hung"))
        elif worker.up and now - worker.beat_at >= liveness.every_s:
            worker.beat_at = now
            worker.beat = self.send(worker, "beat", then=self._heartbeat_answered, group=BEAT)

    def _heartbeat_answered(self, call: Call, answer: Any) -> None:
        worker = call.worker
        worker.beat = None
        if isinstance(answer, Failed):
            self.replace(worker, answer)
        elif not worker.calls or not worker.calls[0].progresses or answer != worker.progress:
            worker.progress, worker.same_since = answer, call.sent
        elif call.sent - worker.same_since > self.liveness.stall_s:
            # Two answered heartbeats this far apart gave the same progress, so the worker hangs, not the driver.
            reason = f"{worker.name}: no progress in {worker.calls[0].what} for {self.liveness.stall_s:g} s"
            self.replace(worker, Failed(reason, "worker_hung"))

    def _forget(self, worker: Worker) -> list[Call]:
        """Remove all pending calls of a worker and return them, without its heartbeat."""
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
            # It could not load. A worker that was lost while it loaded has already been replaced.
            self.replace(worker, answer)


def _ignore(call: Call, answer: Any) -> None:
    """The callback of a call whose answer is no longer needed."""
