"""Behind a web service: what a request may look like, and that a served student says what the student says."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

from roboalign_ray.config import ServingConfig, StudentConfig
from roboalign_ray.config.base import ConfigError
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.protocol import (
    BROKEN,
    Judgement,
    JudgeRequest,
    judge_each,
    judgement_of,
)
from roboalign_ray.judge.rubric import names
from roboalign_ray.judge.serving.http import (
    ServedTeacher,
    answer_json,
    read_question,
    status_of,
)
from roboalign_ray.judge.student.judge import StudentJudge
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.training_range import TrainingRange, clip_statistics

SIZES = {"height": 16, "width": 16, "frames": 3, "hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
TEXT = {"text_hidden": 8, "text_layers": 1, "text_heads": 2, "text_ffn": 8, "fusion_layers": 1}


@pytest.fixture(scope="module")
def video() -> bytes:
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    return encode_video(frames, 7.0)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    made = Student(StudentConfig.small(**SIZES, **TEXT))
    torch.nn.init.normal_(made.head.weight, std=0.05)
    made.version = 4
    return made.eval()


def as_json(**told: object) -> bytes:
    return json.dumps(told).encode()


def test_both_ways_of_sending_a_video_are_the_same_question(video: bytes) -> None:
    text = base64.b64encode(video).decode()
    told = as_json(video=text, instruction="open it")
    first = read_question(told, "application/json; charset=utf-8", None, ServingConfig())
    second = read_question(video, "video/mp4", "open it", ServingConfig())
    np.testing.assert_array_equal(first.frames, second.frames)
    assert first.frames.shape == (5, 16, 16, 3)
    assert (first.instruction, first.fps) == (second.instruction, second.fps) == ("open it", 7.0)


@pytest.mark.parametrize(
    ("body", "kind", "line"),
    [
        (b"{", "application/json", "not JSON"),
        (b"[]", "application/json", "not a JSON object"),
        (as_json(instruction="x"), "application/json", '"video" is missing'),
        (
            as_json(video="AAAA", instruction=3),
            "application/json",
            '"instruction" is missing or not a string',
        ),
        (as_json(video="*", instruction="x"), "application/json", "not base64"),
        (as_json(video="AAAA", instruction="x"), "application/json", "cannot be decoded"),
        (as_json(video="", instruction="x", fps=3), "application/json", 'unknown key "fps"'),
        (b"", "video/mp4", "cannot be decoded"),
        (b"no video", "application/octet-stream", "cannot be decoded"),
        (b"x", "text/html", "'text/html' is not understood"),
        (b"x", "", "is not understood"),
    ],
)
def test_a_bad_request_is_one_line(body: bytes, kind: str, line: str) -> None:
    with pytest.raises(UserError) as raised:
        read_question(body, kind, "x", ServingConfig())
    assert line in raised.value.line()


def test_videos_that_no_judge_takes_are_refused(video: bytes) -> None:
    with pytest.raises(UserError, match="the instruction is empty"):
        read_question(video, "video/mp4", None, ServingConfig())
    still = encode_video(np.zeros((1, 16, 16, 3), np.uint8), 5.0)
    with pytest.raises(UserError, match=r"1 frame\(s\) cannot be judged"):
        read_question(still, "video/mp4", "x", ServingConfig())
    exactly = 5 * 16 * 16
    read_question(video, "video/mp4", "x", ServingConfig(largest_video_pixels=exactly))
    with pytest.raises(UserError, match="more than the 1279 pixels"):
        read_question(video, "video/mp4", "x", ServingConfig(largest_video_pixels=exactly - 1))


def asked(count: int, frames: int = 5) -> list[JudgeRequest]:
    clips = np.random.default_rng(count).integers(0, 256, (count, frames, 16, 16, 3), dtype=np.uint8)
    return [JudgeRequest(clip, 5.0, f"move block {n}") for n, clip in enumerate(clips)]


def test_a_served_student_says_what_the_student_says(student: Student) -> None:
    requests = asked(3)
    said = student.score([r.frames for r in requests], [r.instruction for r in requests])
    judge = StudentJudge(student)
    first, bad, *others = judge.judge([requests[0], asked(1, frames=1)[0], *requests[1:]])
    assert isinstance(bad, Failed)
    assert status_of(bad) == 400
    for outcome, scores, std in zip([first, *others], said.scores, said.std, strict=True):
        assert isinstance(outcome, Judgement)
        told = json.loads(json.dumps(answer_json(judge, outcome)))
        np.testing.assert_allclose([told["scores"][name] for name in names()], scores, atol=1e-5)
        np.testing.assert_allclose([told["std"][name] for name in names()], std, atol=1e-5)
        assert told["total"] == pytest.approx(scores.sum(), abs=1e-5)
        assert (told["judge"], told["version"], told["rationale"]) == ("student", 4, None)


def test_a_student_without_numbers_fails_and_never_gives_zeros(student: Student) -> None:
    broken = Student(student.config)
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    [outcome] = StudentJudge(broken.eval()).judge(asked(1))
    assert isinstance(outcome, Failed)
    assert (outcome.kind, status_of(outcome)) == ("nan", 502)


def test_what_breaks_a_batch_is_judged_alone() -> None:
    calls = []

    def judged(requests):
        calls.append(len(requests))
        if any(request.instruction == "move block 1" for request in requests):
            raise RuntimeError("out of memory\nand more")
        return [request.instruction for request in requests]

    outcomes = judge_each(asked(5), judged, batch=3)
    assert calls == [3, 1, 1, 1, 2]
    assert outcomes[1] == Failed("video: RuntimeError: out of memory", BROKEN)
    assert status_of(outcomes[1]) == 500
    assert [outcome for outcome in outcomes if not isinstance(outcome, Failed)] == [
        "move block 0",
        "move block 2",
        "move block 3",
        "move block 4",
    ]
    assert judge_each([], judged) == []


class Recorded:
    """A teacher that says what was written down."""

    def __init__(self, outcomes: list[Judgement | Failed]) -> None:
        self.outcomes = outcomes

    def judge(self, requests: list[JudgeRequest]) -> list[Judgement | Failed]:
        return self.outcomes[: len(requests)]


def test_a_served_teacher_gives_its_reasons_and_its_failures() -> None:
    scores = dict.fromkeys(names(), 1)
    said = judgement_of([json.dumps({**scores, "rationale": "it slips"})])
    assert isinstance(said, Judgement)
    failed = judgement_of(["no answer at all"])
    served = ServedTeacher("vlm/small", Recorded([said, failed]))
    first, second = served.judge(asked(2))
    assert isinstance(first, Judgement)
    assert answer_json(served, first) == {
        "scores": dict.fromkeys(names(), 1.0),
        "std": dict.fromkeys(names(), 0.0),
        "total": 6.0,
        "rationale": "it slips",
        "judge": "vlm/small",
        "version": None,
        "training_range": None,
    }
    assert second is failed
    assert isinstance(second, Failed)
    assert status_of(second) == 502


def test_a_clip_unlike_the_training_clips_is_told_beside_its_score(student: Student) -> None:
    clips = [request.frames for request in asked(40)]
    statistics = np.stack([clip_statistics(clip) for clip in clips])
    ranges = {"frames": (5.0, 5.0), "fps": (5.0, 5.0), "aspect": (1.0, 1.0)}
    known = TrainingRange(
        statistics.mean(0), np.linalg.inv(np.cov(statistics.T) + np.eye(17) * 1e-6), 8.0, ranges, 40
    )
    like, unlike = asked(1)[0], JudgeRequest(np.zeros((9, 16, 32, 3), np.uint8), 30.0, "open it")
    first, second = StudentJudge(student, known).judge([like, unlike])
    assert isinstance(first, Judgement)
    assert isinstance(second, Judgement)
    assert first.as_json()["training_range"]["outside"] == []
    told = second.as_json()["training_range"]
    assert told["distance"] > 1
    assert [line.split(" ")[0] for line in told["outside"]] == ["frames", "number", "frame", "width"]
    [neither] = StudentJudge(student).judge([unlike])
    assert isinstance(neither, Judgement)
    assert neither.as_json()["training_range"] is None


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_replicas 5 is larger than max_replicas 1"):
        ServingConfig(min_replicas=5)
    with pytest.raises(ConfigError, match="largest_body_mb 500 is larger than held_mb 256"):
        ServingConfig(largest_body_mb=500)
    with pytest.raises(ConfigError, match="largest_video_pixels"):
        ServingConfig(pixels_in_flight=10)
