"""Scores many clips with a student, a teacher, or both in two stages: each clip exactly once, whatever is killed.

    list_clips ──► read, judge (Ray Data) ──► ScoreSet, part by part ──► the most uncertain ──► teachers ──► second
                                                └── no outcome: again, one by one; then quarantined

Only this process writes. What it finds written when it starts is done; everything else is to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from rich.console import Console

from roboalign_ray.actors.served_judge import open_served_judge
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import HostError, UserError
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.judge.data.score_card import write_card
from roboalign_ray.judge.data.score_record import JudgeIdentity, ScoringRecord
from roboalign_ray.judge.data.score_store import (
    QUARANTINE,
    SCORES,
    SECOND,
    ScoreSet,
    read_quarantine,
    total_std,
    write_quarantine,
)
from roboalign_ray.pipelines.cluster.runtime import role_threads, start_ray
from roboalign_ray.pipelines.cluster.weight_folders import student_folder
from roboalign_ray.pipelines.label.clip_reader import content_key
from roboalign_ray.pipelines.label.clip_stream import decoded, judged
from roboalign_ray.pipelines.label.clips import Clip, ClipInput, list_clips
from roboalign_ray.pipelines.label.judge_identity import student_identity, teacher_identity
from roboalign_ray.pipelines.label.label_run import JOURNAL, LabelReport, Question, run_labels
from roboalign_ray.pipelines.label.remote_files import is_uri
from roboalign_ray.pipelines.label.score_sink import ScoreReport, ScoreSink, row_of
from roboalign_ray.pipelines.label.score_stages import BAD, HOST, SAME, judgement_of_row, request_of
from roboalign_ray.pipelines.label.teacher_pool import teacher_pool
from roboalign_ray.pipelines.label.videos import Unreadable
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready

Judges = Literal["student", "teacher", "both"]
_LOST = "its worker was lost on every try"


@one_job
def run_scoring(
    config: JobConfig,
    source: ClipInput,
    out: Path,
    *,
    judge: Judges = "student",
    rescore: bool = False,
    quiet: bool = False,
    console: Console | None = None,
) -> ScoreReport:
    """Score every clip of an input that has no score yet. Started again after a kill, it goes on.

    Args:
        config: `scoring`, the judge's section, and the roles `scorer` (students) and `teacher`.
        source: the input.
        out: folder of the scores.
        judge: "both": the student scores all clips, and the teacher those that the student is most uncertain of.
        rescore: score clips anew whose score is by another judge or another version.
        quiet: show no progress on the terminal.
        console: console of the progress; None takes standard error.

    Raises:
        UserError: the input or a judge cannot be used, the folder holds scores of something else, or no clip can be
            scored.
        HostError: the machine stopped the work; run the same command again when it is mended.
        RoleFailure: workers are lost again and again, or nothing comes any more.
    """
    kinds = ("student", "teacher") if judge == "both" else (judge,)
    for kind in kinds:
        config = check_ready(Preflight(f"score {kind}", config))
    if not is_uri(source.place):
        source = replace(source, place=str(Path(source.place).expanduser().absolute()))
        if out.absolute().is_relative_to(source.place):
            raise UserError("lies inside INPUT", where=str(out), remedy="choose an OUTPUT outside of it")
    clips = list_clips(source)
    found = {"student": student_identity, "teacher": teacher_identity}
    judges = [found[kind](config) for kind in kinds]
    record = ScoringRecord(source.place, source.view, source.video_column, judges)
    changed = record.check(out, rescore=rescore)
    job = _Scoring(config, source, out, judges, clips)
    if changed:
        (out / JOURNAL).unlink(missing_ok=True)  # attempts of another teacher
    record.write(out)
    with start_ray(config.cluster, worker_logs=False):
        began = time.monotonic()
        progress = partial(Progress, unit="clip", quiet=quiet, console=console)
        with progress("scoring", len(clips), done=job.report.known) as bar:
            job.run(kinds[0], bar)
        if judge == "both" and (chosen := job.most_uncertain()):
            with progress("the teacher's share", len(chosen)) as bar:
                job.run_second(chosen, bar)
        job.report.seconds = time.monotonic() - began
    return job.finish()


class _Scoring:
    """One run: what is to do, what came of it, and the files that it is written to."""

    def __init__(
        self,
        config: JobConfig,
        source: ClipInput,
        out: Path,
        judges: Sequence[JudgeIdentity],
        clips: Sequence[Clip],
    ) -> None:
        self.config, self.source, self.out, self.judges = config, source, out, judges
        self.clips = {clip.clip_id: clip for clip in clips}
        self.first, self.second = ScoreSet(out / SCORES), ScoreSet(out / SECOND)
        for scores, judge in ((self.first, judges[0]), (self.second, judges[-1])):
            scores.drop(scores.of_other_judges(judge))  # the record of the folder allows it
        self.report = ScoreReport(clips=len(clips))
        self.todo = [known for clip in clips if (known := self._to_do(clip)) is not None]
        self.report.known = len(clips) - len(self.todo)
        self._ended: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._before = read_quarantine(out)

    def _to_do(self, clip: Clip) -> Clip | None:
        """The clip if it may need a score; it carries what already has one."""
        known = self.first.scored.get(clip.clip_id)
        if known is None:
            return clip
        asked = self.source.instruction
        if clip.stamp == known.stamp and asked in ("", known.instruction):
            return None
        return replace(clip, before=content_key(known.sha256, known.instruction))

    # --- the first stage ---------------------------------------------------------------------------------------------

    def run(self, kind: str, progress: Progress) -> None:
        """Score what is to do with the first judge."""
        if not self.todo:
            return
        if kind == "teacher":
            self._label(self.todo, self.first, self.judges[0], progress)
            return
        opener = partial(
            open_served_judge,
            "student",
            self.config,
            student_folder(self.config),
            role_threads(self.config.cluster.scorer),
        )
        for alone in (False, True):
            left = [clip for clip in self.todo if clip.clip_id not in self._ended]
            if left:
                if alone:
                    progress.console.print(f"{len(left)} clips were lost with a worker: each is tried alone")
                for table in judged(left, self.source, self.config, opener, alone=alone):
                    self._take(table)
                    progress.advance(len(table), quarantined=len(self.report.quarantined))
        for clip in self.todo:
            if clip.clip_id not in self._ended:
                self.report.quarantined[clip.clip_id] = _LOST
        self._keep()

    def _take(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            if row["clip_id"] in self._ended:
                continue
            self._ended.add(row["clip_id"])
            if row["status"] == HOST:
                self._keep()
                raise HostError(row["reason"])
            if row["status"] == BAD:
                self.report.quarantined[row["clip_id"]] = row["reason"]
            elif row["status"] == SAME:
                self.report.known += 1
            else:
                self.report.decode_seconds += row["decode_seconds"]
                self.report.judge_seconds += row["seconds"]
                self._rows.append(row_of(row, judgement_of_row(row), self.judges[0]))
        scoring = self.config.scoring
        if len(self._rows) >= scoring.part or time.monotonic() - self._written > scoring.part_s:
            self._keep()

    def _keep(self) -> None:
        """Write the scores that are not written yet."""
        replaced = {row["clip_id"] for row in self._rows} | self.report.quarantined.keys()
        for scores in (self.second, self.first):  # of content that is no longer there
            scores.drop(replaced & scores.scored.keys())
        self.first.append(self._rows)
        self.report.scored += len(self._rows)
        self._rows, self._written = [], time.monotonic()
        self._write_quarantine()

    def _write_quarantine(self) -> None:
        """Clips of this run, and those of earlier runs that this one has not come to."""
        ahead = {
            name: why for name, why in self._before.items() if name in self.clips and name not in self._ended
        }
        reasons = {**ahead, **self.report.quarantined}
        if reasons or (self.out / QUARANTINE).is_file():
            write_quarantine(self.out, {n: why for n, why in reasons.items() if n not in self.first.scored})

    # --- teachers ----------------------------------------------------------------------------------------------------

    def run_second(self, chosen: Sequence[str], progress: Progress) -> None:
        """Let the teacher score these clips."""
        clips = [self.clips[name] for name in chosen]
        self.report.second = self._label(clips, self.second, self.judges[1], progress).labelled

    def most_uncertain(self) -> list[str]:
        """The clips that the teacher is to see: those that the student is most uncertain of, within the budget."""
        scoring, table = self.config.scoring, self.first.table()
        spread, names = total_std(table), table["clip_id"].to_pylist()
        left = max(0, scoring.teacher_budget - len(self.second.scored))
        order = sorted(range(len(names)), key=lambda number: (-spread[number], names[number]))
        wanted = [n for n in order if spread[n] > scoring.teacher_uncertainty and names[n] in self.clips]
        return [names[n] for n in wanted if names[n] not in self.second.scored][:left]

    def _label(
        self, clips: Sequence[Clip], scores: ScoreSet, judge: JudgeIdentity, progress: Progress
    ) -> LabelReport:
        with teacher_pool(self.config) as pool:
            sink = ScoreSink(scores, replace(judge, name=pool.name), clips, progress)
            report = run_labels(self._questions(clips), pool, self.config.teacher.labelling, sink, self.out)
        self.report.scored += report.labelled
        self.report.judge_seconds += sink.seconds
        self.report.quarantined.update(report.set_aside)
        scores.drop(report.set_aside.keys() & scores.scored.keys())  # of content that is no longer there
        self._write_quarantine()
        return report

    def _questions(self, clips: Sequence[Clip]) -> Iterator[Question | Unreadable]:
        """The clips, read by the pool of readers."""
        seen: set[str] = set()
        for alone in (False, True):
            left = [clip for clip in clips if clip.clip_id not in seen]
            for table in decoded(left, self.source, self.config, alone=alone) if left else ():
                for number, row in enumerate(table.drop_columns(["video"]).to_pylist()):
                    if row["clip_id"] not in seen:
                        seen.add(row["clip_id"])
                        yield from self._question(table, number, row)
        yield from (Unreadable(clip.clip_id, _LOST) for clip in clips if clip.clip_id not in seen)

    def _question(self, table: pa.Table, number: int, row: dict[str, Any]) -> Iterator[Question | Unreadable]:
        self._ended.add(row["clip_id"])
        if row["status"] == HOST:
            raise HostError(row["reason"])
        if row["status"] == BAD:
            yield Unreadable(row["clip_id"], row["reason"])
        elif row["status"] == SAME:
            self.report.known += 1
        else:
            self.report.decode_seconds += row["decode_seconds"]
            yield Question(request_of(table, number), row)

    def finish(self) -> ScoreReport:
        """Write the card and the last list of clips without a score."""
        self._write_quarantine()
        self.report.quarantined = read_quarantine(self.out)
        write_card(self.out, cost=self.report.cost())
        if self.report.quarantined and not self.first.scored:
            reason = next(iter(self.report.quarantined.values()))
            raise UserError(f"no clip could be scored ({reason})", where=self.source.place)
        return self.report
