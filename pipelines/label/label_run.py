"""One run of labelling with a pool of teachers: each clip exactly once, also across restarts.

    questions ──► LabelLedger ──► TeacherPool ──► a sink: a distillation set, or a set of scores
                      └── journal.jsonl: every attempt, written before it begins

When a teacher is lost, so is its batch. Its clips are tried again one by one, so that a clip that kills its teacher is
found and set aside while the others get their labels. A failure is never a score.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from roboalign_ray.config.teacher import TeacherLabellingConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.judge.teacher.label_ledger import LabelLedger
from roboalign_ray.pipelines.label.teacher_pool import Keyed, Outcome, TeacherPool
from roboalign_ray.pipelines.label.videos import Unreadable

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Question:
    """A clip to label.

    Attributes:
        request: the question; its name is the clip's id.
        source: what the sink needs besides the judgement.
    """

    request: JudgeRequest
    source: Any


class LabelSink(Protocol):
    """Where labels go.

    Attributes:
        known: ids that have a label before the run.
    """

    known: frozenset[str]

    def add(self, question: Question, judgement: Judgement) -> None:
        """Take a label; it may be written later."""
        ...

    def keep(self) -> int:
        """Write the labels taken since the last call; their number."""
        ...


@dataclass
class LabelReport:
    """The result of a labelling run.

    Attributes:
        labelled: labels written by this run.
        known: clips that already had a label.
        failed_tries: attempts without a label, in this run and in the earlier runs that it resumes.
        failed_answers: unreadable answers for labelled clips.
        lost_teachers: actors that were replaced.
        set_aside: id -> reason, for clips without a label.
    """

    labelled: int = 0
    known: int = 0
    failed_tries: int = 0
    failed_answers: int = 0
    lost_teachers: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)


def run_labels(
    questions: Iterator[Question | Unreadable],
    pool: TeacherPool,
    settings: TeacherLabellingConfig,
    sink: LabelSink,
    folder: Path,
) -> LabelReport:
    """Label a stream of clips; memory holds the clips in flight and the failed ones.

    Args:
        questions: the clips, each id once. One that cannot be read is set aside.
        pool: the teachers.
        settings: batch, attempts, and labels per write.
        sink: where labels go.
        folder: folder of the journal.
    """
    run = _LabelRun(questions, settings, sink, folder)
    with run.journal:
        pool.run(run.next_batch, run.done)
        run.keep()
    run.report.lost_teachers = pool.losses
    return run.finished()


class _LabelRun:
    """Gives clips to the pool, passes labels on, and writes every attempt to the journal."""

    def __init__(
        self,
        questions: Iterator[Question | Unreadable],
        settings: TeacherLabellingConfig,
        sink: LabelSink,
        folder: Path,
    ) -> None:
        self.settings, self.sink = settings, sink
        self.ledger = LabelLedger(settings.retries, sink.known)
        self.ledger.replay(journal_events(folder / JOURNAL))
        self.journal: IO[str] = (folder / JOURNAL).open("a", encoding="utf-8")
        self.report = LabelReport()
        self._questions = questions
        self._held: dict[str, Question] = {}  # in flight, or waiting for another attempt
        self._new = 0
        self._unreadable: dict[str, str] = {}  # id -> reason

    def next_batch(self) -> list[Keyed] | None:
        """A failed clip alone, else new clips; None if there are none now."""
        item = self.ledger.next_again()
        ids = [item] if item is not None else self._new_items()
        for item in ids:
            self.ledger.begin(item)
        self._note([{"event": "begun", "item": item} for item in ids])
        return [(item, self._held[item].request) for item in ids] or None

    def done(self, item: str, outcome: Outcome) -> None:
        """Pass a label on or record a failure."""
        if isinstance(outcome, Failed):
            self._note([{"event": "failed", "item": item, "reason": outcome.reason}])
            if not self.ledger.fail(item, outcome.reason):
                self._held.pop(item, None)
            return
        question = self._held.pop(item)
        if self.ledger.succeed(item):
            self.sink.add(question, outcome)
            self._new += 1
            self.report.failed_answers += len(outcome.failures)
            self._note([{"event": "labelled", "item": item}])
        if self._new >= self.settings.part:
            self.keep()

    def keep(self) -> None:
        """Write the labels received since the last write."""
        self.report.labelled += self.sink.keep()
        self._new = 0

    def finished(self) -> LabelReport:
        """The report, completed."""
        self.report.failed_tries = self.ledger.failures
        self.report.set_aside = {**self.ledger.set_aside, **self._unreadable}
        return self.report

    def _new_items(self) -> list[str]:
        ids: list[str] = []
        for question in self._questions:
            if isinstance(question, Unreadable):
                self._set_aside(question)
            elif self.ledger.wanted(name := question.request.name):
                self._held[name] = question
                ids.append(name)
                if len(ids) == self.settings.batch:
                    break
            elif name in self.sink.known:
                self.report.known += 1
        return ids

    def _set_aside(self, item: Unreadable) -> None:
        """Record an unreadable clip. This is not an attempt: the clip is read again when the run is restarted."""
        if item.pair_id not in self.sink.known:
            self._unreadable[item.pair_id] = item.reason

    def _note(self, events: list[dict[str, str]]) -> None:
        """Write events to disk before they are acted on, so that a clip that kills this process is recorded."""
        if events:
            self.journal.writelines(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
            self.journal.flush()
            os.fsync(self.journal.fileno())


def journal_events(path: Path) -> list[dict[str, Any]]:
    """The events in the journal; its last line may be truncated."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and {"event", "item"} <= event.keys():
            events.append(event)
    return events
