"""Teacher actors behind the interface of one teacher: batches go to free actors, and lost actors are replaced.

next_batch() ──► free worker ──► outcomes ──► done(key, outcome)         one batch per actor at a time
                     └── lost or late: its videos are Failed, the worker is replaced

Calls, heartbeats, deadlines and replacements are those of `Workforce`. Here stands what only teachers need.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from roboalign_ray.actors.teacher import TeacherActor
from roboalign_ray.config import JobConfig, RoleConfig, TeacherConfig
from roboalign_ray.config.asynchrony import LivenessConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, role_threads, wait
from roboalign_ray.pipelines.cluster.worker_pool import Call, Observer, Worker, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce

Keyed = tuple[Hashable, JudgeRequest]
Outcome = Judgement | Failed
_TURN_S = 1.0  # longest wait in one turn
_START_S = 1800.0  # limit for loading a model; `role.deadline_s` is the limit for an answer


class TeacherPool(Observer):
    """Several teacher actors behind the interface of one teacher.

    Args:
        config: the teacher's config.
        role: workers, resources, deadline of a call. The job ends when more actors are lost in a row than
            (retries + 1) * `max_restarts` * workers: the number that `max_restarts` items per worker cause if each
            kills its teacher on every try.
        actor: class of the actors.
        liveness: limits of their heartbeats.

    Attributes:
        name: name of the teacher in labels.

    Raises:
        UserError: the model cannot be loaded, or its server does not answer.
        RoleFailure: the actors do not start in time.
    """

    def __init__(
        self,
        config: TeacherConfig,
        role: RoleConfig,
        actor: type = TeacherActor,
        liveness: LivenessConfig | None = None,
    ) -> None:
        self._batch = config.labelling.batch
        self._most_in_a_row = (config.labelling.retries + 1) * role.max_restarts * role.workers
        self._in_a_row, self._in_flight = 0, 0
        arguments = {"config": config, "threads": role_threads(role)}
        self._pool = WorkerPool("teacher", actor, role, [arguments] * role.workers, start_s=_START_S)
        self._workforce = Workforce([self._pool], liveness or LivenessConfig())
        self._workforce.observers.append(self)
        try:
            self._pool.load()()
            [name] = wait([self._pool.actors[0].ready.remote()], role.deadline_s, "teacher")
        except BaseException:
            self.close()
            raise
        self.name = str(name)
        # From here on the limit is on losses in a row, not on those of one worker: an item may kill any teacher.
        self._pool.role = role.model_copy(update={"max_restarts": self._most_in_a_row + 1})

    @property
    def losses(self) -> int:
        """Number of actors lost so far."""
        return self._workforce.lost

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Outcome]:
        """One outcome per request, in order. Requests that were lost with an actor or were late are `Failed`."""
        keyed: list[Keyed] = list(enumerate(requests))
        batches = iter([keyed[first : first + self._batch] for first in range(0, len(keyed), self._batch)])
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
        try:
            while True:
                while (worker := self._pool.free()) and (batch := next_batch()):
                    self._send(worker, batch, done)
                if worker and not self._in_flight:
                    return
                self._workforce.turn(_TURN_S)
        finally:  # a call that outlives this run must not report to its caller
            self._workforce.drop_callbacks()
            self._in_flight = 0

    def close(self) -> None:
        """End the actors."""
        self._workforce.close()

    def lost(self, worker: Worker, failed: Failed) -> None:
        """Count a lost actor.

        Raises:
            RoleFailure: too many actors were lost in a row.
        """
        self._in_a_row += 1
        if self._in_a_row > self._most_in_a_row:
            raise RoleFailure(f"{self._in_a_row} teachers lost in a row, the last one: {failed.reason}")

    def _send(self, worker: Worker, batch: list[Keyed], done: Callable[[Any, Outcome], None]) -> None:
        self._in_flight += 1
        requests = [request for _, request in batch]
        then = partial(self._answered, batch, done)
        self._workforce.send(worker, "judge", requests, then=then, progresses=False)

    def _answered(
        self, batch: list[Keyed], done: Callable[[Any, Outcome], None], call: Call, answer: Any
    ) -> None:
        """Report a batch's outcomes."""
        self._in_flight -= 1
        if not isinstance(answer, Failed):
            self._in_a_row = call.worker.restarts = 0
            for (key, _), outcome in zip(batch, answer, strict=True):
                done(key, outcome)
            return
        for key, _ in batch:
            done(key, answer)
        if call.worker.up:  # the actor raised an exception, so the state of its model is unknown
            self._workforce.replace(call.worker, answer)


@contextmanager
def teacher_pool(config: JobConfig) -> Iterator[TeacherPool]:
    """Run the block with a job's teacher pool on the connected cluster."""
    pool = TeacherPool(config.teacher, config.cluster.teacher, liveness=config.asynchrony.liveness)
    try:
        yield pool
    finally:
        pool.close()
