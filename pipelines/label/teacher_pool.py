"""A pool of teacher actors: it keeps all actors busy, waits with a deadline, and replaces lost actors.

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
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, role_threads, settle, spawn, stop, wait

Keyed = tuple[Hashable, JudgeRequest]
Outcome = Judgement | Failed
_FETCH_S = 1.0  # limit for reading an answer that is ready
_START_S = 1800.0  # limit for loading a model; `role.deadline_s` is the limit for an answer


@dataclass
class _Call:
    actor: Any
    batch: list[Keyed]
    ends: float


class TeacherPool:
    """Several teacher actors behind the interface of one teacher.

    Args:
        config: the teacher's config.
        role: workers, resources, deadline of a call. The job ends when more actors are lost in a row than
            (retries + 1) * `max_restarts` * workers: the number that `max_restarts` items per worker cause if each
            kills its teacher on every try.
        actor: class of the actors.

    Attributes:
        name: name of the teacher in labels.
        losses: number of actors lost so far.

    Raises:
        UserError: the model cannot be loaded, or its server does not answer.
        RoleFailure: the actors do not start in time.
    """

    def __init__(self, config: TeacherConfig, role: RoleConfig, actor: type = TeacherActor) -> None:
        self._config, self._role, self._class = config, role, actor
        # The pool replaces lost actors itself, since Ray would repeat a call that killed its actor unchanged.
        self._spawned = role.model_copy(update={"max_restarts": 0})
        self._most_in_a_row = (config.labelling.retries + 1) * role.max_restarts * role.workers
        self.losses, self._in_a_row = 0, 0
        self._starting: dict[Any, _Call] = {}  # replacements that are still loading
        self._actors = self._start(role.workers)
        try:
            names = wait([actor.ready.remote() for actor in self._actors], _START_S, "teachers")
        except BaseException:
            self.close()
            raise
        self.name = str(names[0])

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Outcome]:
        """One outcome per request, in order. Requests that were lost with an actor or were late are `Failed`."""
        size = self._config.labelling.batch
        keyed: list[Keyed] = list(enumerate(requests))
        batches = iter([keyed[first : first + size] for first in range(0, len(keyed), size)])
        outcomes: dict[Hashable, Outcome] = {}
        self.run(lambda: next(batches, None), outcomes.__setitem__)
        return [outcomes[number] for number in range(len(requests))]

    def run(self, next_batch: Callable[[], list[Keyed] | None], done: Callable[[Any, Outcome], None]) -> None:
        """Judge batches until there are no more.

        Args:
            next_batch: returns the next batch, or None if there is none now; called again after every outcome.
            done: called with every outcome.

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
                    replacement = self._replace(call.actor)
                    busy[replacement.ready.remote()] = _Call(replacement, [], time.monotonic() + _START_S)

    def close(self) -> None:
        """End the actors."""
        stop(self._actors)
        self._actors = []

    def _settled(self, busy: dict[Any, _Call]) -> list[Any]:
        """References that have an answer, or whose deadline has passed."""
        left = min(call.ends for call in busy.values()) - time.monotonic()
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=max(0.0, left))
        now = time.monotonic()
        return ready or [reference for reference, call in busy.items() if call.ends <= now]

    def _finish(self, reference: Any, call: _Call, done: Callable[[Any, Outcome], None]) -> bool:
        """Report a call's outcomes. Return False if its actor must be replaced.

        Raises:
            RoleFailure: too many actors were lost in a row.
        """
        value = self._value(reference)
        if not isinstance(value, Failed):
            for (key, _), outcome in zip(call.batch, value if call.batch else [], strict=True):
                done(key, outcome)
            self._in_a_row = 0 if call.batch else self._in_a_row
            return True
        # An exception inside the actor also leads here, since the state of its model is then unknown.
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

    def _replace(self, actor: Any) -> Any:
        stop([actor])
        [replacement] = self._start(1)
        self._actors = [replacement if known is actor else known for known in self._actors]
        return replacement

    def _start(self, count: int) -> list[Any]:
        keywords = {"config": self._config, "threads": role_threads(self._role)}
        return spawn(self._class, self._spawned, [keywords] * count)


@contextmanager
def teacher_pool(config: JobConfig) -> Iterator[TeacherPool]:
    """Run the block with a job's teacher pool on the connected cluster."""
    pool = TeacherPool(config.teacher, config.cluster.teacher)
    try:
        yield pool
    finally:
        pool.close()
