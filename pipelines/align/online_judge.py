"""The judge of an alignment run: audited against its teacher, trained further on the teacher's labels, handed out.

    trained groups ──► annotators (teacher) ──► audit: drift, alarms ──► relabel now?
                                            └─► labels ──► distiller ──► gate ──► student, version v+1 ──► scorers

RoboAlign-R1's online iterative distillation (arXiv 2605.03821). With staleness 0 the loop waits for all of it; above,
it goes on meanwhile, and scorers take a new version when it is there. Every score records the version that gave it.
What the driver holds of all this are references and numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from roboalign_ray.actors.annotator import AnnotationRecord
from roboalign_ray.actors.distiller import StudentRecord
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.online.relabel_schedule import Relabelling, RelabelSchedule
from roboalign_ray.judge.validation.gate import GateResult
from roboalign_ray.pipelines.align.groups import Finished
from roboalign_ray.pipelines.align.judge_audits import Event, Found, JudgeAudits, JudgeReport
from roboalign_ray.pipelines.align.label_queue import DistillerTask, LabelQueue
from roboalign_ray.pipelines.align.sample_selection import Sample, spread_samples
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, wait
from roboalign_ray.pipelines.cluster.worker_pool import Call, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce


@dataclass(frozen=True)
class StudentVersion:
    """The student that scores now.

    Attributes:
        version: 0 before the run has published one.
        reference: one reference to its files; empty before.
    """

    version: int = 0
    reference: list[Any] = field(default_factory=list)


class OnlineJudge:
    """One run's student and all that happens to it. Everything is done in the workforce's turns.

    Args:
        config: the job.
        workforce: of all workers.
        annotators: the teachers; None where nothing is labelled.
        distillers: one worker.

    Attributes:
        student: newest version.
        busy: an audit or a relabelling is under way.
    """

    def __init__(
        self, config: JobConfig, workforce: Workforce, annotators: WorkerPool | None, distillers: WorkerPool
    ) -> None:
        self.config, self._settings = config, config.judge.relabel
        self._workforce, self._annotators, self._distillers = workforce, annotators, distillers
        self.student = StudentVersion()
        self._holder: Any = None  # the distiller that handed it out
        self._refused = 0  # times in a row that another one did not
        self._report = JudgeReport()
        self._audits = JudgeAudits(config.judge.gate, self._report)
        self._queue: deque[DistillerTask] = deque()  # waits for the distiller to be free
        self._labels = LabelQueue(config, workforce, annotators, self._queue.append, self._report)
        self._reset()

    def _reset(self) -> None:
        for part in (self._report, self._audits, self._queue, self._labels):
            part.clear()
        self._schedule = RelabelSchedule(self._settings)
        self.busy = False
        self._failed_rounds = 0
        self._state: dict[str, Any] | None = None  # before what is under way began

    # --- beginning, resuming ---------------------------------------------------------------------------------------

    def begin(self) -> GateResult:
        """The student that the run begins with, tried; waits for it.

        Raises:
            UserError: it fails the gate, or cannot be read.
            RoleFailure: the distiller does not answer.
        """
        self._reset()
        return self._take(self._distillers.actors[0].begin)

    def load_state_dict(self, state: dict[str, Any], files: Sequence[Any] = ()) -> None:
        """Take up what `state_dict` gave; waits for the student's files.

        Args:
            files: one reference to those that a checkpoint brought, for where the run's folder has lost them.

        Raises:
            UserError: its version is not there any more.
            RoleFailure: the distiller does not answer.
        """
        self._reset()
        self._report.load_state_dict(state)  # of updates before the checkpoint, not taken yet
        self._schedule.load_state_dict(state["schedule"])
        self._audits.load_state_dict(state["alarms"])
        self._failed_rounds = int(state["failed_rounds"])
        self._take(self._distillers.actors[0].version, int(state["version"]), *files)

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, JSON types; while something is under way, as it was before.

        With what happened and has not been asked for yet.
        """
        state = self._state or self._settled()
        return {**state, **self._report.state_dict()}

    def _settled(self) -> dict[str, Any]:
        return {
            "schedule": self._schedule.state_dict(),
            "alarms": self._audits.state_dict(),
            "failed_rounds": self._failed_rounds,
            "version": self.student.version,
        }

    def _take(self, method: Any, *arguments: Any) -> GateResult:
        files, told = method.options(num_returns=2).remote(*arguments)
        self._holder = self._distillers.actors[0]
        [record] = wait([told], self._distillers.role.deadline_s, "student")
        assert record.version is not None  # a first version is published, or an error
        self.student = StudentVersion(record.version, [files])
        self._report.event("student", version=record.version, gate=record.gate.as_json())
        return record.gate

    # --- after an update -------------------------------------------------------------------------------------------

    def observe(self, update: int, groups: Sequence[Finished]) -> None:
        """See what an update trained on; begins an audit or a relabelling where one is due.

        Args:
            update: from 1.
            groups: its groups.
        """
        if self._annotators is None or self.busy:
            return
        before = self._settled()
        # Where all were scored by the student before this one, the next update's will do.
        audit, version = self._settings.audit_samples, self.student.version
        if self._schedule.audit_due(update) and (samples := spread_samples(groups, audit, version)):
            self.busy, self._state = True, before
            self._schedule.audited(update)
            self._labels.add(samples, None, partial(self._audited, update, groups, samples))
            return
        relabelling = self._schedule.after_update(update) if self._settings.every else None
        if relabelling is not None:
            self.busy, self._state = True, before
            self._relabel(relabelling, groups)

    def audit(self, update: int, groups: Sequence[Finished]) -> Callable[[], bool]:
        """Show some held-out groups to the teacher; nothing follows from what it says of them.

        Returns:
            whether the teacher has not answered yet.
        """
        samples = spread_samples(groups, self._settings.held_out_samples)
        # An evaluation that is gone through again, as after Ctrl-C in it, is told once.
        report = self._report
        report.events = [e for e in report.events if (e.get("of"), e.get("update")) != ("held_out", update)]
        waits: list[int] = []

        def done(found: Found) -> None:
            self._audits.measure(update, samples, found, "held_out")
            waits.clear()

        if self._annotators is not None and samples:
            waits.append(update)
            self._labels.add(samples, None, done)
        return lambda: bool(waits)

    def work(self) -> None:
        """Hand waiting work to workers that are free."""
        self._labels.work()
        self._renew()
        while self._queue and (worker := self._distillers.free()):
            self._queue.popleft()(worker)

    def _renew(self) -> None:
        """The student's files again, where another distiller took over: the one before may have taken them along."""
        worker = self._distillers.free()
        if worker is None or worker.actor is self._holder:
            return
        self._holder = worker.actor
        version = self.student.version

        def renewed(call: Call, answer: StudentRecord | Failed) -> None:
            if isinstance(answer, Failed):
                self._holder, self._refused = None, self._refused + 1  # asked for again
                if self._refused >= self._settings.patience:
                    raise RoleFailure(f"the student cannot be had again: {answer.reason}")
                return
            self._refused = 0
            if self.student.version == version:
                self.student = StudentVersion(version, [call.values[0]])

        self._workforce.send(worker, "version", version, then=renewed, returns=2)

    def take_scalars(self) -> dict[str, float]:
        """Figures since they were last taken, by the names of their curves."""
        return {"judge/version": float(self.student.version), **self._report.take_scalars()}

    def take_events(self) -> list[Event]:
        """What happened since it was last asked for."""
        return self._report.take_events()

    # --- audits ----------------------------------------------------------------------------------------------------

    def _audited(
        self, update: int, groups: Sequence[Finished], samples: Sequence[Sample], found: Found
    ) -> None:
        drift = self._audits.measure(update, samples, found, "judge")
        relabelling = self._schedule.after_update(update, drift) if self._settings.every else None
        if relabelling is None:
            self._rest()
        else:
            self._relabel(relabelling, groups)

    # --- relabelling -----------------------------------------------------------------------------------------------

    def _relabel(self, relabelling: Relabelling, groups: Sequence[Finished]) -> None:
        samples = spread_samples(groups, self._settings.rollouts)
        ids = [sample.pair_id for sample in samples]

        def ask(worker: Any) -> None:
            self._workforce.send(worker, "known", ids, then=told)

        def told(call: Call, answer: Mapping[str, np.ndarray] | Failed) -> None:
            # A label that is there, as after a restart, is not asked for again.
            known = (
                {}
                if isinstance(answer, Failed)
                else {
                    name: AnnotationRecord(name, scores, float("nan"), None)
                    for name, scores in answer.items()
                }
            )
            missing = [sample for sample in samples if sample.pair_id not in known]

            def done(answered: Found) -> None:
                found = known | answered
                if relabelling.cause == "interval":  # any other came from an audit
                    # By the newest student among those that scored them: a newer one may just have come.
                    newest = max((sample.version for sample in samples), default=0)
                    scored = [sample for sample in samples if sample.version == newest]
                    self._audits.measure(relabelling.update, scored, found, "judge")
                if any(record.failed is None for record in found.values()):
                    self._distil(relabelling, ids)
                else:
                    nothing = Failed("the teacher could label none of the rollouts", "unlabelled")
                    self._distilled(relabelling, [], nothing)

            self._labels.add(missing, relabelling.round, done)

        self._queue.append(ask)

    def _distil(self, relabelling: Relabelling, ids: Sequence[str], attempt: int = 1) -> None:
        def ask(worker: Any) -> None:
            self._workforce.send(
                worker, "relabel", relabelling.round, self.student.version, ids, then=trained, returns=2
            )

        def trained(call: Call, answer: StudentRecord | Failed) -> None:
            if isinstance(answer, Failed) and attempt < self._settings.patience:
                self._distil(relabelling, ids, attempt + 1)
            else:
                self._distilled(relabelling, call.values, answer)

        self._queue.append(ask)

    def _distilled(
        self, relabelling: Relabelling, values: Sequence[Any], answer: StudentRecord | Failed
    ) -> None:
        about: Event = {
            "round": relabelling.round,
            "update": relabelling.update,
            "cause": relabelling.cause,
        }
        if isinstance(answer, Failed) or answer.version is None:
            self._failed_rounds += 1
            why = (
                {"message": answer.reason}
                if isinstance(answer, Failed)
                else {"message": f"gate closed by {answer.gate.failed()}", "gate": answer.gate.as_json()}
            )
            self._report.event("relabelling failed", **about, **why)
            self._check_patience(answer)
        else:
            self._failed_rounds = 0
            self.student = StudentVersion(answer.version, [values[0]])
            figures = dict(answer.figures)
            self._report.scalars |= {f"judge/distillation/{name}": value for name, value in figures.items()}
            self._report.event(
                "relabelled", **about, version=answer.version, gate=answer.gate.as_json(), figures=figures
            )
        self._rest()

    def _check_patience(self, answer: StudentRecord | Failed) -> None:
        """A student that cannot keep up with its teacher must not go on rewarding.

        Raises:
            UserError: the gate stayed closed as often as the patience says; the message has its gaps.
            RoleFailure: the distiller failed as often.
        """
        if self._failed_rounds < self._settings.patience:
            return
        if isinstance(answer, Failed):
            raise RoleFailure(f"{self._failed_rounds} relabellings failed in a row: {answer.reason}")
        answer.gate.assert_open()
        raise UserError("the student could not be published", where="judge.relabel")

    def _rest(self) -> None:
        self.busy, self._state = False, None
