"""A pool of teachers that answer garbage, hang and die, on a real local Ray: labels stay whole and exactly once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cloudpickle

from roboalign_ray.config import JobConfig, RoleConfig, TeacherConfig
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, judgement_of
from roboalign_ray.judge.teacher.prompt import target_answer
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.label.job import label_items
from roboalign_ray.pipelines.label.label_run import JOURNAL, journal_events
from roboalign_ray.pipelines.label.teacher_pool import TeacherPool
from roboalign_ray.pipelines.label.videos import items_of

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CONFIG = JobConfig.model_validate(
    {
        "teacher": {"reasoning": False, "labelling": {"batch": 3, "retries": 2, "part": 4}},
        "cluster": {"teacher": {"workers": 2, "num_cpus": 0.5, "deadline_s": 60}},
    }
)


class FaultyTeacher:
    """Gives the score that a video's first pixel says; three answers in ten are garbage, and names tell the rest.

    A name with "poison" kills the process, "stuck" hangs it, "once" kills it the first time it is seen, "raise" raises.
    """

    def __init__(self, config: TeacherConfig, threads: int = 1) -> None:
        self.config = config

    def ready(self) -> str:
        return "faulty"

    def beat(self) -> int:
        return 0

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        return [self._judged(request) for request in requests]

    def _judged(self, request: JudgeRequest) -> Judgement | Failed:
        if "poison" in request.name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "once" in request.name:
            mark = Path(request.instruction)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if "raise" in request.name:
            raise RuntimeError("out of memory")
        if "stuck" in request.name:
            time.sleep(3600)
        good = target_answer(scores_of(request.frames), self.config)
        texts = ["I cannot say." if garbage(request, n) else good for n in range(2)]
        return judgement_of(texts)


def scores_of(frames: np.ndarray) -> np.ndarray:
    level = float(frames[0, 0, 0, 0] > 127)
    return np.array([3, 2, 1, 1, 1, 2]) * (0.5 + 0.5 * level)


def garbage(request: JudgeRequest, answer: int) -> bool:
    digest = hashlib.sha256(f"{request.name} {answer}".encode()).digest()
    return digest[0] < 0.3 * 256


def video(number: int) -> np.ndarray:
    return np.full((3, 16, 16, 3), 255 * (number % 2), np.uint8)


def pair(name: str, number: int, instruction: str = "do it") -> JudgedPair:
    zeros = np.zeros(6, np.float32)
    return JudgedPair(name, f"g-{name}", video(number), 5.0, instruction, zeros, "nobody", "real")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()


def pooled(role: RoleConfig | None = None) -> TeacherPool:
    return TeacherPool(CONFIG.teacher, role or CONFIG.cluster.teacher, FaultyTeacher)


def expected(items: Sequence[JudgedPair]) -> set[str]:
    """Items that a readable answer exists for."""
    named = (
        (item, JudgeRequest(item.frames, item.fps, item.instruction, name=item.pair_id)) for item in items
    )
    return {item.pair_id for item, asked in named if not (garbage(asked, 0) and garbage(asked, 1))}


@pytest.mark.chaos
def test_garbage_deaths_and_hangs_leave_whole_labels_each_exactly_once(tmp_path: Path) -> None:
    items = [pair(f"v{n}", n) for n in range(20)]
    odd = [pair("poison", 0), pair("once", 1, str(tmp_path / "mark")), pair("stuck", 0)]
    mixed = [*items[:5], odd[0], *items[5:10], odd[1], *items[10:15], odd[2], *items[15:]]
    pool = pooled(CONFIG.cluster.teacher.model_copy(update={"deadline_s": 8.0}))
    try:
        report = label_items(mixed, pool, CONFIG, tmp_path / "set")
    finally:
        pool.close()
    kept = DistillationSet(tmp_path / "set")
    labelled = set(kept.ids)
    assert len(kept.ids) == len(labelled)
    assert expected(items) | {"once"} >= labelled >= expected(items)
    assert {"poison", "stuck"} <= set(report.set_aside)
    assert labelled | set(report.set_aside) == {item.pair_id for item in mixed}
    assert not labelled & set(report.set_aside)
    assert report.labelled == len(labelled)
    assert (
        report.lost_teachers >= 7
    )  # three tries each of the two that never answer, one of the one that does
    by_id = {item.pair_id: item for item in mixed}
    for number, name in enumerate(kept.ids):
        np.testing.assert_allclose(kept.scores[number], scores_of(by_id[name].frames))
    one = kept.read(0)
    assert one.annotator == "faulty"
    assert one.provenance["teacher"]["answers"] + one.provenance["teacher"]["failed_answers"] == 2


def test_a_restarted_run_asks_for_nothing_twice(tmp_path: Path) -> None:
    items = [pair(f"v{n}", n) for n in range(12)]

    def cut_short() -> Iterator[JudgedPair]:
        yield from items[:7]
        raise KeyboardInterrupt

    pool = pooled()
    try:
        with pytest.raises(KeyboardInterrupt):
            label_items(cut_short(), pool, CONFIG, tmp_path / "set")
        before = set(DistillationSet(tmp_path / "set").ids)
        label_items(items, pool, CONFIG, tmp_path / "set")
        report = label_items(items, pool, CONFIG, tmp_path / "set")
        pool.name = "another"
        with pytest.raises(UserError, match="the labels of round 1 are by faulty, this teacher is another"):
            label_items(items, pool, CONFIG, tmp_path / "set")
        assert label_items(items, pool, CONFIG, tmp_path / "set", round_number=2).labelled == 0
    finally:
        pool.close()
    kept = DistillationSet(tmp_path / "set").ids
    assert sorted(kept) == sorted(expected(items))
    assert before <= set(kept)
    assert report.labelled == 0
    assert report.known == len(kept)
    events = [json.loads(line) for line in (tmp_path / "set" / JOURNAL).read_text().splitlines()]
    tries = [event["item"] for event in events if event["event"] == "begun"]
    assert max(tries.count(item.pair_id) for item in items) <= 2 * (CONFIG.teacher.labelling.retries + 1)


def test_damaged_lines_of_the_journal_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(b'\xff\xfe\n[]\n{"event": "begun"}\n{"event": "begun", "item": "a"}\n{"event": "fai')
    assert journal_events(path) == [{"event": "begun", "item": "a"}]


def test_a_pool_judges_in_order_and_gives_failures_their_place() -> None:
    pool = pooled()
    try:
        requests = [JudgeRequest(video(n), 5.0, "do it", name=f"v{n}") for n in range(7)]
        requests[4] = JudgeRequest(video(0), 5.0, "do it", name="poison")
        outcomes = pool.judge(requests)
        [raised] = pool.judge([JudgeRequest(video(0), 5.0, "do it", name="raise")])
        losses = pool.losses
        again = pool.judge(requests[:3])
    finally:
        pool.close()
    assert len(outcomes) == 7
    assert all(isinstance(outcomes[n], Failed) for n in (3, 4, 5))  # a batch dies together
    for number in (0, 1, 2, 6):
        outcome = outcomes[number]
        if isinstance(outcome, Judgement):
            np.testing.assert_allclose(outcome.scores, scores_of(requests[number].frames))
    assert isinstance(raised, Failed)
    assert (raised.kind, losses) == ("worker_error", 2)  # its actor is replaced too
    assert [type(outcome) for outcome in again] == [type(outcome) for outcome in outcomes[:3]]


@pytest.mark.chaos
def test_teachers_that_always_die_end_the_job(tmp_path: Path) -> None:
    items = [pair(f"poison{n}", n) for n in range(12)]
    pool = pooled(RoleConfig(workers=1, num_cpus=0.5, max_restarts=1, deadline_s=60))
    try:
        with pytest.raises(RoleFailure, match="teachers lost in a row"):
            label_items(items, pool, CONFIG, tmp_path / "set")
    finally:
        pool.close()
    assert len(DistillationSet(tmp_path / "set")) == 0


def test_a_folder_and_a_store_of_pairs_are_labelled_alike(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(4):
        clip = np.repeat(video(number), 2, axis=1).repeat(2, axis=2)
        (tmp_path / "videos" / f"v{number}.mp4").write_bytes(encode_video(clip, 5.0))
        (tmp_path / "videos" / f"v{number}.json").write_text('{"instruction": "do it", "fps": 5}')
    items = list(items_of(tmp_path / "videos"))
    write_pairs(iter(items), tmp_path / "pairs")
    pool = pooled()
    try:
        label_items(items, pool, CONFIG, tmp_path / "one")
        label_items(items_of(tmp_path / "pairs"), pool, CONFIG, tmp_path / "two")
    finally:
        pool.close()
    one, two = DistillationSet(tmp_path / "one"), DistillationSet(tmp_path / "two")
    assert sorted(one.ids) == sorted(two.ids) == sorted(expected(items))
    scores = dict(zip(two.ids, two.scores, strict=True))
    for name, points in zip(one.ids, one.scores, strict=True):
        np.testing.assert_array_equal(points, scores[name])
