"""The judge of an alignment run: audited against its teacher, trained on the teacher's labels, and published.

    trained groups ──► annotators (teacher) ──► audit: drift, alarms ──► relabel now?
                                            └─► labels ──► distiller ──► gate ──► student, version v+1 ──► scorers

RoboAlign-R1's online iterative distillation (arXiv 2605.03821). With staleness 0, the loop waits for all of it;
otherwise it continues meanwhile, and scorers use a new version when it is available. Every score records its version.
The driver holds only references and numbers.
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
    """The current student.

    Attributes:
        version: 0 before the run has published a student.
        reference: one reference to its files; empty before that.
    """

    version: int = 0
    reference: list[Any] = field(default_factory=list)


class OnlineJudge:
    """The student of one run, its audits and its training. Everything happens in the workforce's turns.

    Args:
        config: the job.
        workforce: handles the calls to all workers.
        annotators: pool of teachers; None if nothing is labelled.
        distillers: pool of one worker.

    Attributes:
        student: the newest version.
        busy: whether an audit or a relabelling runs.
    """

    def __init__(
        self, config: JobConfig, workforce: Workforce, annotators: WorkerPool | None, distillers: WorkerPool
    ) -> None:
        self.config, self._settings = config, config.judge.relabel
        self._workforce, self._annotators, self._distillers = workforce, annotators, distillers
        self.student = StudentVersion()
        self._holder: Any = None  # the distiller that published the student
        self._refused = 0  # number of times in a row that another distiller could not provide it
        self._report = JudgeReport()
        self._audits = JudgeAudits(config.judge.gate, self._report)
        self._queue: deque[DistillerTask] = deque()  # tasks that wait for the distiller
        self._labels = LabelQueue(config, workforce, annotators, self._queue.append, self._report)
        self._reset()

    def _reset(self) -> None:
        for part in (self._report, self._audits, self._queue, self._labels):
            part.clear()
        self._schedule = RelabelSchedule(self._settings)
        self.busy = False
        self._failed_rounds = 0
        self._state: dict[str, Any] | None = None  # state before the running audit or relabelling

    # --- beginning, resuming ---------------------------------------------------------------------------------------

    def begin(self) -> GateResult:
        """Check and publish the run's first student, and wait for it.

        Raises:
            UserError: the student fails the gate, or cannot be read.
            RoleFailure: the distiller does not answer.
        """
        self._reset()
        return self._take(self._distillers.actors[0].begin)

    def load_state_dict(self, state: dict[str, Any], files: Sequence[Any] = ()) -> None:
        """Restore a `state_dict`, and wait for the student's files.

        Args:
            files: one reference to the checkpoint's copy of the files, used if the run's folder has none.

        Raises:
            UserError: the student's version no longer exists.
            RoleFailure: the distiller does not answer.
        """
        self._reset()
        self._report.load_state_dict(state)  # events of updates before the checkpoint that were not taken
        self._schedule.load_state_dict(state["schedule"])
        self._audits.load_state_dict(state["alarms"])
        self._failed_rounds = int(state["failed_rounds"])
        self._take(self._distillers.actors[0].version, int(state["version"]), *files)

    def state_dict(self) -> dict[str, Any]:
        """State that the next update depends on, JSON types. During an audit or relabelling, the state before it.

        Includes events and figures that were not taken yet.
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
        files, reference = method.options(num_returns=2).remote(*arguments)
        self._holder = self._distillers.actors[0]
        [record] = wait([reference], self._distillers.role.deadline_s, "student")
        assert record.version is not None  # a first version is published, or an error
        self.student = StudentVersion(record.version, [files])
        self._report.event("student", version=record.version, gate=record.gate.as_json())
        return record.gate

    # --- after an update -------------------------------------------------------------------------------------------

    def observe(self, update: int, groups: Sequence[Finished]) -> None:
        """Read an update's groups; start an audit or a relabelling if one is due.

        Args:
            update: number of the update, from 1.
            groups: its training groups.
        """
        if self._annotators is None or self.busy:
            return
        before = self._settled()
        # If the previous student scored all of them, the next update's groups are used.
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
        """Have the teacher score some held-out groups. The result only adds figures and events.

        Returns:
            whether answers of the teacher are pending.
        """
        samples = spread_samples(groups, self._settings.held_out_samples)
        # An evaluation that is repeated, for example after Ctrl-C, is reported once.
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
        """Send waiting work to free workers."""
        self._labels.work()
        self._renew()
        while self._queue and (worker := self._distillers.free()):
            self._queue.popleft()(worker)

    def _renew(self) -> None:
        """Fetch the student's files again if another distiller took over: they may be lost with the previous one."""
        worker = self._distillers.free()
        if worker is None or worker.actor is self._holder:
            return
        self._holder = worker.actor
        version = self.student.version

        def renewed(call: Call, answer: StudentRecord | Failed) -> None:
            if isinstance(answer, Failed):
                self._holder, self._refused = None, self._refused + 1  # fetched again in the next turn
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
        """Events since they were last taken."""
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
            self._workforce.send(worker, "known", ids, then=send_missing)

        def send_missing(call: Call, answer: Mapping[str, np.ndarray] | Failed) -> None:
            # An existing label, for example after a restart, is not requested again.
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
                if relabelling.cause == "interval":  # all other causes come from an audit
                    # The newest student among those that scored the samples; a newer one may just have been published.
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
        """End the job if the student fails too often, so that it does not continue to reward.

        Raises:
            UserError: the gate failed `patience` times in a row; the message has the gaps.
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
