"""A pool of teacher actors: keeps every one busy, waits with a deadline, and replaces those that are lost.

next_batch() ──► actor ──► outcomes ──► done(key, outcome)         one call per actor at a time
                   └── lost or late: its videos are Failed, the actor is replaced
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from roboalign_ray.actors.teacher import TeacherActor
from roboalign_ray.config import JobConfig, RoleConfig, TeacherConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.protocol import JudgeRequest, TeacherJudgement
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, role_threads, settle, spawn, stop, wait

Keyed = tuple[Hashable, JudgeRequest]
Outcome = TeacherJudgement | Failed
_FETCH_S = 1.0  # seconds for an answer that is there to be read
_START_S = 1800.0  # longest wait for a model to be loaded; `role.deadline_s` is for an answer


@dataclass
class _Call:
    actor: Any
    batch: list[Keyed]
    ends: float


class TeacherPool:
    """Teachers behind the interface of one.

    Args:
        config: the teacher's.
        role: workers, resources, deadline of a call. More losses in a row, per worker, than `max_restarts` items that
            kill their teacher on every try would cause end the job.
        actor: class of the actors.

    Attributes:
        name: of the teacher, as it stands in labels.
        losses: actors lost so far.

    Raises:
        UserError: the model cannot be loaded, or its server does not answer.
        RoleFailure: the actors do not come up in time.
    """

    def __init__(self, config: TeacherConfig, role: RoleConfig, actor: type = TeacherActor) -> None:
        self._config, self._role, self._class = config, role, actor
        # The pool replaces lost actors itself: a call that killed its actor must not be sent again as it was.
        self._spawned = role.model_copy(update={"max_restarts": 0})
        self._most_in_a_row = (config.labelling.retries + 1) * role.max_restarts * role.workers
        self.losses, self._in_a_row = 0, 0
        self._starting: dict[Any, _Call] = {}  # replacements that are not up yet
        self._actors = self._made(role.workers)
        try:
            names = wait([actor.ready.remote() for actor in self._actors], _START_S, "teachers")
        except BaseException:
            self.close()
            raise
        self.name = str(names[0])

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Outcome]:
        """One outcome per request, in order; what was lost with an actor or came too late is Failed."""
        size = self._config.labelling.batch
        keyed: list[Keyed] = list(enumerate(requests))
        batches = iter([keyed[first : first + size] for first in range(0, len(keyed), size)])
        outcomes: dict[Hashable, Outcome] = {}
        self.run(lambda: next(batches, None), outcomes.__setitem__)
        return [outcomes[number] for number in range(len(requests))]

    def run(self, next_batch: Callable[[], list[Keyed] | None], done: Callable[[Any, Outcome], None]) -> None:
        """Judge batches until there are no more.

        Args:
            next_batch: the next one, or None for now; asked again after every outcome.
            done: told of every outcome.

        Raises:
            UserError: a teacher found its input wrong.
            RoleFailure: too many actors were lost in a row.
        """
        busy, self._starting = self._starting, {}
        starting = [call.actor for call in busy.values()]
        idle = [actor for actor in self._actors if actor not in starting]
        while True:
            while idle and (batch := next_batch()):
                actor = idle.pop()
                reference = actor.judge.remote([request for _, request in batch])
                busy[reference] = _Call(actor, batch, time.monotonic() + self._role.deadline_s)
            if idle and not any(call.batch for call in busy.values()):
                self._starting = busy
                return
            for reference in self._settled(busy):
                call = busy.pop(reference)
                if self._finish(reference, call, done):
                    idle.append(call.actor)
                else:
                    fresh = self._replacement(call.actor)
                    busy[fresh.ready.remote()] = _Call(fresh, [], time.monotonic() + _START_S)

    def close(self) -> None:
        """End the actors."""
        stop(self._actors)
        self._actors = []

    def _settled(self, busy: dict[Any, _Call]) -> list[Any]:
        """References that have an answer, or whose time is up."""
        left = min(call.ends for call in busy.values()) - time.monotonic()
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=max(0.0, left))
        now = time.monotonic()
        return ready or [reference for reference, call in busy.items() if call.ends <= now]

    def _finish(self, reference: Any, call: _Call, done: Callable[[Any, Outcome], None]) -> bool:
        """Hand out a call's outcomes; False where its actor must not be asked again.

        Raises:
            RoleFailure: too many actors were lost in a row.
        """
        value = self._value(reference)
        if not isinstance(value, Failed):
            for (key, _), outcome in zip(call.batch, value if call.batch else [], strict=True):
                done(key, outcome)
            self._in_a_row = 0 if call.batch else self._in_a_row
            return True
        # Also after an exception inside it: in what state that left the model is not known.
        for key, _ in call.batch:
            done(key, value)
        self.losses += 1
        self._in_a_row += 1
        if self._in_a_row > self._most_in_a_row:
            raise RoleFailure(f"{self._in_a_row} teachers lost in a row, the last one: {value.reason}")
        return False

    def _value(self, reference: Any) -> Any:
        try:
            [value] = settle([reference], _FETCH_S, "teacher")
        except RoleFailure:
            return Failed("teacher: no answer in time", "timeout")
        return value

    def _replacement(self, actor: Any) -> Any:
        stop([actor])
        [fresh] = self._made(1)
        self._actors = [fresh if known is actor else known for known in self._actors]
        return fresh

    def _made(self, count: int) -> list[Any]:
        keywords = {"config": self._config, "threads": role_threads(self._role)}
        return spawn(self._class, self._spawned, [keywords] * count)


@contextmanager
def teacher_pool(config: JobConfig) -> Iterator[TeacherPool]:
    """The pool of a job, on the cluster that is connected, for the length of the block."""
    pool = TeacherPool(config.teacher, config.cluster.teacher)
    try:
        yield pool
    finally:
        pool.close()
