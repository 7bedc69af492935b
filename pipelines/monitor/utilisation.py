"""Utilisation and throughput of each role of an alignment job: means over the last seconds, for display.

    calls that ended ─► one `RoleMeter` per role ─► busy share, groups/s, tokens/s, workers lost

A call's work is spread evenly over its duration, so that the figures do not jump when a long call ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.pipelines.cluster.worker_pool import Call, Observer, Worker, WorkerPool


@dataclass(frozen=True)
class RoleState:
    """One role at one time.

    Attributes:
        workers, up: worker slots, and workers that can receive work.
        busy: share of time in which the workers worked, 0 to 1.
        groups, tokens: groups and tokens per second.
        lost: total number of workers that were lost, hung or exceeded their deadline.
    """

    name: str
    workers: int
    up: int
    busy: float
    groups: float
    tokens: float
    lost: int


class RoleMeter:
    """Measures work in a sliding window; the caller gives the times.

    Args:
        window_s: length of the window, seconds.
        now: when the job began; the window never begins earlier.
    """

    def __init__(self, window_s: float, now: float) -> None:
        self.window_s, self._began = window_s, now
        self._done: deque[tuple[float, float, float, float]] = deque()  # began, ended, groups, tokens; by end

    def add(self, began: float, ended: float, groups: float, tokens: float) -> None:
        """Add work of one worker; calls must be in the order of ends."""
        self._done.append((began, ended, groups, tokens))

    def rates(self, now: float, under_way: Sequence[float] = ()) -> tuple[float, float, float]:
        """Mean number of busy workers, groups per second, tokens per second.

        Args:
            now: end of the window.
            under_way: start times of calls in flight; these count as busy time, but not yet as finished work.
        """
        first = max(self._began, now - self.window_s)
        while self._done and self._done[0][1] <= first:
            self._done.popleft()
        length = now - first
        if length <= 0:
            return 0.0, 0.0, 0.0
        busy = sum(now - max(first, since) for since in under_way)
        groups = tokens = 0.0
        for began, ended, some_groups, some_tokens in self._done:
            inside = ended - max(first, began)
            share = inside / (ended - began) if ended > began else 1.0
            busy += inside
            groups += share * some_groups
            tokens += share * some_tokens
        return busy / length, groups / length, tokens / length


class Meters(Observer):
    """An observer that keeps a meter per role.

    Args:
        window_s: see `RoleMeter`.
        now: when the job began.
        update_groups: groups per update.
    """

    def __init__(self, window_s: float, now: float, update_groups: int) -> None:
        self._window_s, self._began, self._update_groups = window_s, now, update_groups
        self._meters: dict[str, RoleMeter] = {}
        self._lost: dict[str, int] = {}

    def answered(self, call: Call, answer: Any, began: float, ended: float) -> None:
        """Add the work of a call; a failed call has only busy time."""
        if call.group is None:
            self._meter(call.worker.pool.name).add(began, ended, *self._work(call, answer))

    def lost(self, worker: Worker, failed: Failed) -> None:
        """Count a lost worker."""
        self._lost[worker.pool.name] = self._lost.get(worker.pool.name, 0) + 1

    def state(self, pool: WorkerPool, now: float) -> RoleState:
        """The state of a role."""
        at_work = [worker.since for worker in pool.workers if worker.calls]
        busy, groups, tokens = self._meter(pool.name).rates(now, at_work)
        places = len(pool.workers)
        share = min(1.0, busy / places) if places else 0.0
        return RoleState(pool.name, places, pool.up, share, groups, tokens, self._lost.get(pool.name, 0))

    def _meter(self, role: str) -> RoleMeter:
        return self._meters.setdefault(role, RoleMeter(self._window_s, self._began))

    def _work(self, call: Call, answer: Any) -> tuple[int, int]:
        """Groups and tokens of a call.

        All ranks of the learner make the same update, so only the first rank's is counted.
        """
        if isinstance(answer, Failed):
            return 0, 0
        tokens = sum(map(_amount, answer if isinstance(answer, list) else [answer]))
        if call.what == "update":
            return (0, 0) if call.worker.number else (self._update_groups, tokens)
        return call.size, tokens


def _amount(part: Any) -> int:
    """The count in an answer: world-model units in a report or record, or trained tokens; 0 for other answers."""
    return getattr(part, "units", getattr(part, "size", 0))
