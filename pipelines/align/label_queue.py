"""Samples that the teacher labels: one labelling after another, failed groups tried again, labels stored.

samples ──► waiting groups ──► annotators ──► stored by the distiller, if they train ──► `done(found)`
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from roboalign_ray.actors.annotator import AnnotationRecord
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.pipelines.align.judge_audits import Found, JudgeReport
from roboalign_ray.pipelines.align.sample_selection import Sample
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.cluster.worker_pool import Call, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce

DistillerTask = Callable[[Any], None]
"""A task for a distiller, called with a free one."""


@dataclass
class _Labelling:
    """Samples that are labelled together."""

    waiting: deque[tuple[list[Sample], int]]  # the samples of a group, and the number of the attempt
    left: int
    keep_as: int | None  # round that labels are stored under; None stores none
    done: Callable[[Found], None]
    found: Found = field(default_factory=dict)


class LabelQueue:
    """Labellings in order; the teacher works on the first one.

    Args:
        config: the job.
        workforce: handles the calls to all workers.
        annotators: pool of teachers; None if nothing is labelled.
        to_distiller: queues work for the distiller.
        report: receives counts and failed labels.
    """

    def __init__(
        self,
        config: JobConfig,
        workforce: Workforce,
        annotators: WorkerPool | None,
        to_distiller: Callable[[DistillerTask], None],
        report: JudgeReport,
    ) -> None:
        self._settings, self._retries = config.judge.relabel, config.teacher.labelling.retries
        self._workforce, self._annotators = workforce, annotators
        self._to_distiller, self._report = to_distiller, report
        self._labellings: deque[_Labelling] = deque()  # the teacher works on the first one

    def clear(self) -> None:
        """Drop all labellings; pending answers are ignored."""
        self._labellings.clear()

    def add(self, samples: Sequence[Sample], keep_as: int | None, done: Callable[[Found], None]) -> None:
        """Label samples, after the labellings in the queue.

        Args:
            keep_as: round that labels are stored under; None stores none.
            done: called with the teacher's scores.
        """
        if not samples:
            done({})
            return
        by_group: dict[int, list[Sample]] = {}
        for sample in samples:
            by_group.setdefault(id(sample.group), []).append(sample)
        waiting = deque((part, 1) for part in by_group.values())
        self._labellings.append(_Labelling(waiting, len(waiting), keep_as, done))

    def work(self) -> None:
        """Send waiting groups to free annotators."""
        if self._labellings and self._annotators is not None:
            labelling = self._labellings[0]
            while labelling.waiting and (worker := self._annotators.free()):
                self._ask(labelling, worker, *labelling.waiting.popleft())

    def _ask(self, labelling: _Labelling, worker: Any, samples: list[Sample], attempt: int) -> None:
        self._workforce.send(
            worker,
            "annotate",
            [[sample.place for sample in samples]],
            samples[0].group.reference,
            then=partial(self._answered, labelling, samples, attempt),
            size=1,
            returns=2,
            # A vision-language model may reason about a video for minutes: only the role's deadline limits the call.
            progresses=self._settings.teacher != "vlm",
        )

    def _answered(
        self,
        labelling: _Labelling,
        samples: list[Sample],
        attempt: int,
        call: Call,
        answer: list[AnnotationRecord] | Failed,
    ) -> None:
        if not self._is_first(labelling):
            return
        if isinstance(answer, Failed):
            if attempt <= self._retries:
                labelling.waiting.append((samples, attempt + 1))
                return
            lost = np.full(len(DIMENSIONS), np.nan)
            answer = [AnnotationRecord(s.pair_id, lost, float("nan"), answer) for s in samples]
        labelling.found |= {record.pair_id: record for record in answer}
        self._count(answer)
        if labelling.keep_as is not None and any(record.failed is None for record in answer):
            self._to_distiller(partial(self._keep, labelling, labelling.keep_as, call.values[0]))
            return
        self._one_less(labelling)

    def _keep(
        self, labelling: _Labelling, round_number: int, rows: Any, worker: Any, *, attempt: int = 1
    ) -> None:
        def kept(call: Call, answer: int | Failed) -> None:
            if not self._is_first(labelling):
                return
            if not isinstance(answer, Failed):
                self._one_less(labelling)
            elif attempt < self._settings.patience:
                self._to_distiller(partial(self._keep, labelling, round_number, rows, attempt=attempt + 1))
            else:
                raise RoleFailure(f"labels could not be kept: {answer.reason}")

        self._workforce.send(worker, "keep", round_number, rows, then=kept)

    def _one_less(self, labelling: _Labelling) -> None:
        labelling.left -= 1
        if labelling.left == 0:
            self._labellings.popleft()
            labelling.done(labelling.found)

    def _is_first(self, labelling: _Labelling) -> bool:
        """Whether the teacher works on this labelling; answers to labellings from before `clear` are ignored."""
        return bool(self._labellings) and labelling is self._labellings[0]

    def _count(self, records: Sequence[AnnotationRecord]) -> None:
        failures = [record.failed for record in records if record.failed is not None]
        self._report.count("judge/labels", len(records) - len(failures))
        self._report.count("judge/label_failures", len(failures))
        for failed in failures:
            self._report.event("label failed", reason=failed.reason, kind=failed.kind)
