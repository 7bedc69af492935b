"""Labels many videos with a pool of teachers: each exactly once, also across restarts; a failure is never a score.

    pairs, videos, Ray Data ──► LabelLedger ──► TeacherPool ──► DistillationSet (Parquet, by id)
                                    └── journal.jsonl: every attempt, written before it begins

When a teacher is lost, so is its batch. Its videos are tried again one by one, so that a video that kills its teacher
is found and set aside while the others get their labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import JudgedPair, open_pairs
from roboalign_ray.judge.online.rollout_annotator import labelled
from roboalign_ray.judge.protocol import JudgeRequest
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.judge.teacher.label_ledger import LabelLedger
from roboalign_ray.judge.validation.agreement import Agreement, agreement
from roboalign_ray.pipelines.label.teacher_pool import Keyed, Outcome, TeacherPool, teacher_pool
from roboalign_ray.pipelines.label.videos import Item, Unreadable, items_of
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready

JOURNAL, REPORT = "journal.jsonl", "labelling.json"


@dataclass
class LabelReport:
    """The result of a labelling run.

    Attributes:
        labelled: labels written by this run.
        known: videos that already had a label.
        failed_tries: attempts without a label, in this run and in the earlier runs that it resumes.
        failed_answers: unreadable answers for labelled videos.
        lost_teachers: actors that were replaced.
        set_aside: id -> reason, for videos without a label.
    """

    labelled: int = 0
    known: int = 0
    failed_tries: int = 0
    failed_answers: int = 0
    lost_teachers: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)


@one_job
def run_label(
    config: JobConfig,
    source: Path,
    out: Path,
    *,
    round_number: int = 1,
    split: str | None = None,
    count: int | None = None,
) -> LabelReport:
    """Label a store of pairs or a folder of videos into a distillation set.

    Args:
        config: the `teacher` section and `cluster.teacher` are used.
        source: pairs (their scores are replaced), or videos NAME.mp4, each with NAME.json {"instruction": …}.
        out: the distillation set; a run that is started again resumes.
        round_number: round of the labels.
        split, count: for a store of pairs: label only this split ("train" or "held_out"), and only this many pairs,
            evenly spaced.

    Raises:
        UserError: the source cannot be read, or the teacher cannot be loaded.
        RoleFailure: too many teachers were lost in a row.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    items = items_of(source, split=split, count=count)
    config = check_ready(Preflight("label", config, out))
    with start_ray(config.cluster, worker_logs=False), teacher_pool(config) as pool:
        return label_items(items, pool, config, out, round_number=round_number)


def label_items(
    items: Iterable[Item],
    pool: TeacherPool,
    config: JobConfig,
    out: Path,
    *,
    round_number: int = 1,
) -> LabelReport:
    """Label a stream of items; memory holds the items in flight and the failed ones.

    Args:
        items: videos with ids; their scores are ignored. A video that cannot be read is set aside.
        pool: the teachers.
        config: `teacher.labelling` is used.
        out: the distillation set.
    """
    job = _Labelling(iter(items), config, out, round_number, pool.name)
    with job.journal:
        pool.run(job.next_batch, job.done)
        job.keep()
    job.report.lost_teachers = pool.losses
    return job.write_report()


def run_agree(labels: Path, pairs: Path) -> Agreement:
    """Agreement of a teacher's labels with the pairs' own scores; videos that were set aside count as failed.

    Raises:
        UserError: labels or pairs cannot be read, or they share no video.
    """
    if not labels.is_dir():
        lacks = folder_fault(labels, "no labels here")
        raise UserError(lacks, where=str(labels), remedy="write them with: roboalign judge label")
    given, store = DistillationSet(labels), open_pairs(pairs)
    scores = dict(zip(given.ids, given.scores, strict=True))
    report = labels / REPORT
    aside = (
        read_object(report, "labelling report", keys=("set_aside",))["set_aside"] if report.is_file() else {}
    )
    shared = [number for number, name in enumerate(store.ids) if name in scores or name in aside]
    if not shared:
        raise UserError("labels and pairs share no video", where=str(labels))
    nothing = np.full(len(DIMENSIONS), np.nan)
    labels_of_shared = np.stack([scores.get(store.ids[number], nothing) for number in shared])
    name = given.read(0).annotator if len(given) else "teacher"
    groups = [store.group_ids[number] for number in shared]
    return agreement(name, labels_of_shared, store.scores[shared], groups)


class _Labelling:
    """One run: gives items to the pool, stores labels, and writes every attempt to the journal."""

    def __init__(
        self, items: Iterator[Item], config: JobConfig, out: Path, round_number: int, teacher: str
    ) -> None:
        self.settings, self.round, self.teacher, self.out = (
            config.teacher.labelling,
            round_number,
            teacher,
            out,
        )
        self.set = DistillationSet(out)
        self._known = frozenset(self.set.ids)
        self._check_annotator()
        self.ledger = LabelLedger(self.settings.retries, self._known)
        self.ledger.replay(_events(out / JOURNAL))
        self.journal: IO[str] = (out / JOURNAL).open("a", encoding="utf-8")
        self.report = LabelReport()
        self._items = items
        self._held: dict[str, JudgedPair] = {}  # in flight, or waiting for another attempt
        self._new: list[JudgedPair] = []
        self._unreadable: dict[str, str] = {}  # id -> reason

    def _check_annotator(self) -> None:
        """Check that all labels of a round come from one teacher."""
        same = np.flatnonzero(self.set.rounds == self.round)
        if len(same) and (before := self.set.read(int(same[0])).annotator) != self.teacher:
            raise UserError(
                f"the labels of round {self.round} are by {before}, this teacher is {self.teacher}",
                where=str(self.out),
                remedy="use another --out, or a later --round",
            )

    def next_batch(self) -> list[Keyed] | None:
        """A failed item alone, else new items; None if there are none now."""
        item = self.ledger.next_again()
        ids = [item] if item is not None else self._new_items()
        for item in ids:
            self.ledger.begin(item)
        self._note([{"event": "begun", "item": item} for item in ids])
        return [(item, _request(self._held[item])) for item in ids] or None

    def done(self, item: str, outcome: Outcome) -> None:
        """Store a label or record a failure."""
        if isinstance(outcome, Failed):
            self._note([{"event": "failed", "item": item, "reason": outcome.reason}])
            if not self.ledger.fail(item, outcome.reason):
                self._held.pop(item, None)
            return
        pair = self._held.pop(item)
        if self.ledger.succeed(item):
            self._new.append(labelled(pair, outcome, self.teacher))
            self.report.failed_answers += len(outcome.failures)
            self._note([{"event": "labelled", "item": item}])
        if len(self._new) >= self.settings.part:
            self.keep()

    def keep(self) -> None:
        """Write the labels received since the last write."""
        if self._new:
            self.report.labelled += self.set.append(self.round, self._new).written
            self._new = []

    def write_report(self) -> LabelReport:
        """Write the report beside the labels and return it."""
        self.report.failed_tries = self.ledger.failures
        self.report.set_aside = {**self.ledger.set_aside, **self._unreadable}
        text = json.dumps(asdict(self.report), indent=2, ensure_ascii=False) + "\n"
        (self.out / REPORT).write_text(text, encoding="utf-8")
        return self.report

    def _new_items(self) -> list[str]:
        ids: list[str] = []
        for pair in self._items:
            if isinstance(pair, Unreadable):
                self._set_aside(pair)
            elif self.ledger.wanted(pair.pair_id):
                self._held[pair.pair_id] = pair
                ids.append(pair.pair_id)
                if len(ids) == self.settings.batch:
                    break
            elif pair.pair_id in self._known:
                self.report.known += 1
        return ids

    def _set_aside(self, item: Unreadable) -> None:
        """Record an unreadable video. This is not an attempt: the video is read again when the run is restarted."""
        if item.pair_id not in self._known:
            self._unreadable[item.pair_id] = item.reason

    def _note(self, events: list[dict[str, str]]) -> None:
        """Write events to disk before they are acted on, so that an item that kills this process is recorded."""
        if events:
            self.journal.writelines(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
            self.journal.flush()
            os.fsync(self.journal.fileno())


def _request(pair: JudgedPair) -> JudgeRequest:
    return JudgeRequest(pair.frames, pair.fps, pair.instruction, name=pair.pair_id)


def _events(path: Path) -> list[dict[str, Any]]:
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
