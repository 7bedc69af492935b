"""Scoring jobs on a real local Ray: each clip exactly once, the judge's own numbers, whatever is killed or changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from made_pairs import made_pair
from ray import cloudpickle
from scored_clips import BAD, GOOD, MOST_PIXELS, good_clip, write_clip, write_clips
from served_judge import small_student

from roboalign_ray.config import JobConfig, RoleConfig, TeacherConfig
from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import Failed, HostError, UserError
from roboalign_ray.judge.data.pairs import write_pairs
from roboalign_ray.judge.data.score_store import SCORES, SECOND, final_scores, read_quarantine
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, read_request
from roboalign_ray.judge.rubric import names
from roboalign_ray.judge.student.judge import StudentJudge
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.label import score_job
from roboalign_ray.pipelines.label.clips import ClipInput
from roboalign_ray.pipelines.label.score_job import run_scoring
from roboalign_ray.pipelines.label.teacher_pool import TeacherPool

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL = (
    "cluster.scorer.num_cpus=0.5",
    "cluster.teacher.num_cpus=0.5",
    "scoring.decode_cpus=0.25",
    "scoring.decode_max=2",
    "scoring.judge_max=2",
    "scoring.clips_per_block=2",
    "scoring.part=4",
    f"scoring.largest_video_pixels={MOST_PIXELS}",
)


def job(place: Path, *more: str, version: int = 3) -> JobConfig:
    folder = place / f"student{version}"
    if not folder.exists():
        small_student(folder, version)
    return resolve_job("demo", [*SMALL, f"judge.weights={folder}", *more])


def rows_on_disk(out: Path, stage: str = SCORES) -> dict[str, dict[str, Any]]:
    """Every row by clip, read without the store; no clip is there twice."""
    rows = [
        one for path in sorted((out / stage).glob("*.parquet")) for one in pq.read_table(path).to_pylist()
    ]
    assert len({one["clip_id"] for one in rows}) == len(rows)
    return {one["clip_id"]: one for one in rows}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / SCORES).iterdir()}


def test_a_folder_is_scored_once_and_only_what_changes_again(tmp_path: Path) -> None:
    config, out, clips = job(tmp_path), tmp_path / "out", tmp_path / "clips"
    write_clips(clips)
    source = ClipInput(str(clips))
    report = run_scoring(config, source, out, quiet=True)
    assert (report.clips, report.scored, report.known) == (len(GOOD) + len(BAD), len(GOOD), 0)
    assert set(report.quarantined) == set(read_quarantine(out)) == set(BAD)
    rows = rows_on_disk(out)
    judge = StudentJudge(Student.load(tmp_path / "student3"))
    for seed, name in enumerate(GOOD):
        [wanted] = judge.judge([read_request(clips / name, f"open drawer {seed}")])
        assert isinstance(wanted, Judgement)
        np.testing.assert_allclose([rows[name][key] for key in names()], wanted.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            [rows[name][f"{key}_std"] for key in names()], wanted.std, rtol=1e-4, atol=1e-5
        )
        assert rows[name]["total"] == pytest.approx(wanted.total, rel=1e-4)
        assert (rows[name]["judge"], rows[name]["version"], rows[name]["frames"]) == ("student", 3, 6)

    before = files(out)
    os.utime(clips / GOOD[0])  # another time, the same content
    again = run_scoring(config, source, out, quiet=True)
    assert (again.scored, again.known, files(out)) == (0, len(GOOD), before)

    write_clip(clips / GOOD[0], good_clip(40), "open drawer 0")  # other content
    write_clip(clips / GOOD[1], good_clip(1), "close drawer")  # another instruction
    write_clip(clips / GOOD[2], b"", "open drawer 2")  # no longer a video
    write_clip(clips / "empty.mp4", good_clip(41))  # mended
    write_clip(clips / "new.mp4", good_clip(42))
    changed = run_scoring(config, source, out, quiet=True)
    assert changed.scored == 4
    assert set(rows_on_disk(out)) == {GOOD[0], GOOD[1], "empty.mp4", "new.mp4"}
    assert rows_on_disk(out)[GOOD[1]]["instruction"] == "close drawer"
    assert set(read_quarantine(out)) == {*BAD, GOOD[2]} - {"empty.mp4"}


@pytest.mark.slow
def test_another_judge_is_refused_and_scores_anew_where_wanted(tmp_path: Path) -> None:
    out, clips = tmp_path / "out", tmp_path / "clips"
    for seed in range(3):
        write_clip(clips / f"{seed}.mp4", good_clip(seed))
    source = ClipInput(str(clips))
    run_scoring(job(tmp_path), source, out, quiet=True)
    newer, before = job(tmp_path, version=4), files(out)
    with pytest.raises(UserError, match="was scored by another judge"):
        run_scoring(newer, source, out, quiet=True)
    assert files(out) == before
    assert run_scoring(newer, source, out, rescore=True, quiet=True).scored == 3
    assert {row["version"] for row in rows_on_disk(out).values()} == {4}
    assert run_scoring(newer, source, out, rescore=True, quiet=True).scored == 0


class Deadly:
    """A judge that dies of instructions with "poison", and of "once" the first time."""

    name, version = "deadly", None

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        for request in requests:
            word, _, mark = request.instruction.partition(" ")
            if word == "full":
                raise HostError("No space left on device")
            if word == "poison" or (word == "once" and not Path(mark).exists()):
                if mark:
                    Path(mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [Judgement(np.full(6, 0.5), np.full(6, 0.1)) for _ in requests]


def opens(judge: Callable[[], Any]) -> Callable[..., Any]:
    return lambda *arguments: judge()


def pairs_of(place: Path, instructions: Sequence[str]) -> ClipInput:
    made = (made_pair(number, number, instruction=text) for number, text in enumerate(instructions))
    write_pairs(made, place)
    return ClipInput(str(place))


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_job, "open_served_judge", opens(Deadly))
    instructions = [f"do {number}" for number in range(9)]
    instructions[4], instructions[7] = "poison", f"once {tmp_path / 'mark'}"
    source = pairs_of(tmp_path / "pairs", instructions)
    config = job(tmp_path, "scoring.retries=1", "scoring.judge_max=1")
    report = run_scoring(config, source, tmp_path / "out", quiet=True)
    assert report.quarantined == {"made/4": "its worker was lost on every try"}
    assert set(rows_on_disk(tmp_path / "out")) == {f"made/{number}" for number in range(9) if number != 4}


def test_a_full_disk_in_a_worker_ends_the_job_and_sets_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_job, "open_served_judge", opens(Deadly))
    source = pairs_of(tmp_path / "pairs", ["full"])
    with pytest.raises(HostError, match="No space left"):
        run_scoring(job(tmp_path), source, tmp_path / "out", quiet=True)
    assert read_quarantine(tmp_path / "out") == {}


class Slow:
    """Takes a moment per clip."""

    name, version = "slow", None

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        time.sleep(0.3 * len(requests))
        return [
            Judgement(np.full(6, float(request.frames[0, 0, 0, 0]) / 255), np.ones(6)) for request in requests
        ]


def workers(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_workers_that_are_killed_lose_no_clip_and_double_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_job, "open_served_judge", opens(Slow))
    source = pairs_of(tmp_path / "pairs", [f"do {number}" for number in range(24)])
    killed, ended = [], threading.Event()

    def kill_each_stage_once() -> None:
        for stage in ("JudgeStage", "DecodeStage"):
            while not ended.wait(0.05):
                if (tmp_path / "out" / SCORES).is_dir() and (there := workers(stage)):
                    there[0].kill()
                    killed.append(stage)
                    break

    thread = threading.Thread(target=kill_each_stage_once)
    thread.start()
    try:
        report = run_scoring(job(tmp_path, "scoring.batch=1"), source, tmp_path / "out", quiet=True)
    finally:
        ended.set()
        thread.join()
    assert "JudgeStage" in killed
    assert report.quarantined == {}
    rows = rows_on_disk(tmp_path / "out")
    assert {name: round(row["total"] * 255 / 6) for name, row in rows.items()} == pytest.approx(
        {f"made/{number}": 10 * (number % 20) for number in range(24)}, abs=3
    )


class Loud:
    """A teacher that likes everything, with a reason; it dies of "poison"."""

    def __init__(self, config: TeacherConfig, threads: int = 1) -> None:
        self._calls = 0

    def ready(self) -> str:
        return "loud"

    def beat(self) -> int:
        return self._calls

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        if any("poison" in request.instruction for request in requests):
            os.kill(os.getpid(), signal.SIGKILL)
        self._calls += 1
        return [Judgement(np.ones(6), np.zeros(6), np.ones((1, 6)), "good") for _ in requests]


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool of teachers, its real actors around a toy teacher."""

    @contextmanager
    def pool(config: JobConfig) -> Iterator[TeacherPool]:
        made = TeacherPool(config.teacher, RoleConfig(num_cpus=0.25, deadline_s=120), Loud)
        try:
            yield made
        finally:
            made.close()

    monkeypatch.setattr(score_job, "teacher_pool", pool)


TEACHER = ("teacher.model=shipped", "teacher.labelling.retries=1", "teacher.labelling.part=2")


@pytest.mark.slow
@pytest.mark.usefixtures("loud")
def test_the_teacher_sees_the_most_uncertain_clips_within_its_budget(tmp_path: Path) -> None:
    source, out = pairs_of(tmp_path / "pairs", [f"do {n}" for n in range(8)]), tmp_path / "out"
    config = job(tmp_path, *TEACHER, "scoring.teacher_uncertainty=0", "scoring.teacher_budget=3")
    report = run_scoring(config, source, out, judge="both", quiet=True)
    assert (report.scored, report.second) == (11, 3)
    first = final_scores_of_stage(out)
    wanted = sorted(first, key=lambda name: (-first[name], name))[:3]
    assert set(rows_on_disk(out, SECOND)) == set(wanted)
    table = final_scores(out).to_pylist()
    assert sorted(row["clip_id"] for row in table if row["judge"] == "loud") == sorted(wanted)
    assert all(row["rationale"] == "good" for row in table if row["judge"] == "loud")
    again = run_scoring(config, source, out, judge="both", quiet=True)
    assert (again.scored, again.second) == (0, 0)
    bounded = job(tmp_path, *TEACHER, "scoring.teacher_uncertainty=1e9", "scoring.teacher_budget=8")
    assert run_scoring(bounded, source, out, judge="both", quiet=True).second == 0


def final_scores_of_stage(out: Path) -> dict[str, float]:
    """The student's uncertainty of each clip's total."""
    rows = rows_on_disk(out)
    return {
        name: float(np.sqrt(sum(row[f"{key}_std"] ** 2 for key in names()))) for name, row in rows.items()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("loud")
def test_a_teacher_alone_scores_all_but_what_kills_it(tmp_path: Path) -> None:
    source, out = pairs_of(tmp_path / "pairs", ["do 0", "poison", "do 2", "do 3"]), tmp_path / "out"
    config = job(tmp_path, *TEACHER)
    report = run_scoring(config, source, out, judge="teacher", quiet=True)
    assert set(rows_on_disk(out)) == {"made/0", "made/2", "made/3"}
    assert set(report.quarantined) == {"made/1"}
    assert run_scoring(config, source, out, judge="teacher", quiet=True).scored == 0


@pytest.mark.slow
def test_a_driver_that_is_killed_again_and_again_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    for seed in range(40):
        write_clip(clips / f"{seed:02d}.mp4", good_clip(seed))
    write_clip(clips / "bad.mp4", b"")
    job(tmp_path)  # writes the student
    settings = [*SMALL, f"judge.weights={tmp_path / 'student3'}", "scoring.part_s=0.01", "scoring.batch=2"]
    words = [sys.executable, "-m", "roboalign_ray.pipelines.cli.main", "score", str(clips)]
    more = [part for value in settings for part in ("--set", value)]

    def start(out: Path) -> subprocess.Popen[str]:
        command = [*words, str(out), *more]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    out, kills = tmp_path / "out", 0
    for wanted in (1, 3, 6):  # killed when there are so many parts
        process = start(out)
        ends = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < ends:
            if len(list((out / SCORES).glob("part-*.parquet"))) >= wanted:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.communicate()
        rows_on_disk(out)
    last = start(out)
    told, _ = last.communicate(timeout=300)
    assert last.returncode == 0, told
    calm = start(tmp_path / "calm")
    calm.communicate(timeout=300)
    assert kills >= 2
    one, two = rows_on_disk(out), rows_on_disk(tmp_path / "calm")
    assert set(one) == set(two) == {f"{seed:02d}.mp4" for seed in range(40)}
    for name, row in one.items():
        for key, value in row.items():
            if key in ("seconds", "decode_seconds"):
                continue
            other = two[name][key]
            assert (
                value == pytest.approx(other, rel=1e-4, abs=1e-5)
                if isinstance(value, float)
                else value == other
            )
    assert read_quarantine(out).keys() == read_quarantine(tmp_path / "calm").keys() == {"bad.mp4"}
    shutil.rmtree(tmp_path / "calm")
