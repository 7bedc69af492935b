"""Labels many videos for distillation with a pool of teachers: a store of pairs or a folder of videos.

`label_run` does the work; here are its input and the set that its labels go to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import JudgedPair, open_pairs
from roboalign_ray.judge.online.rollout_annotator import labelled
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.judge.validation.agreement import Agreement, agreement
from roboalign_ray.pipelines.label.label_run import LabelReport, Question, run_labels
from roboalign_ray.pipelines.label.teacher_pool import TeacherPool, teacher_pool
from roboalign_ray.pipelines.label.videos import Item, Unreadable, items_of
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready

REPORT = "labelling.json"


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
    sink = DistillationSink(out, round_number, pool.name)
    report = run_labels(map(_question, items), pool, config.teacher.labelling, sink, out)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    (out / REPORT).write_text(text, encoding="utf-8")
    return report


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


class DistillationSink:
    """Stores labels as pairs of a distillation set.

    Args:
        out: folder of the set.
        round_number: round of the labels.
        teacher: name of the teacher.

    Raises:
        UserError: the round's labels are by another teacher.
    """

    def __init__(self, out: Path, round_number: int, teacher: str) -> None:
        self._set, self._round, self._teacher = DistillationSet(out), round_number, teacher
        self.known = frozenset(self._set.ids)
        same = np.flatnonzero(self._set.rounds == round_number)
        if len(same) and (before := self._set.read(int(same[0])).annotator) != teacher:
            raise UserError(
                f"the labels of round {round_number} are by {before}, this teacher is {teacher}",
                where=str(out),
                remedy="use another --out, or a later --round",
            )
        self._new: list[JudgedPair] = []

    def add(self, question: Question, judgement: Judgement) -> None:
        """See `LabelSink`."""
        self._new.append(labelled(question.source, judgement, self._teacher))

    def keep(self) -> int:
        """See `LabelSink`."""
        new, self._new = self._new, []
        return self._set.append(self._round, new).written if new else 0


def _question(item: Item) -> Question | Unreadable:
    if isinstance(item, Unreadable):
        return item
    return Question(JudgeRequest(item.frames, item.fps, item.instruction, name=item.pair_id), item)
