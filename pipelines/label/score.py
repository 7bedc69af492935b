"""Scores a few videos: reads them, and returns the judgements of the teacher or the student.

For a video that cannot be read, the result is the reason; the others are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, read_request
from roboalign_ray.judge.serving.http import ServedJudge, ServedTeacher
from roboalign_ray.judge.student.judge import StudentJudge
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.training_range import TrainingRange
from roboalign_ray.judge.teacher.model_sources import teacher_training_range
from roboalign_ray.pipelines.cluster.weight_folders import student_folder
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready


@dataclass(frozen=True)
class ScoredVideos:
    """A judge's results for several videos.

    Attributes:
        judge: "student", or the teacher's name.
        version: version of a student; None for a teacher.
        outcomes: one per video, in order.
    """

    judge: str
    version: int | None
    outcomes: Sequence[Judgement | Failed]


def run_score(config: JobConfig, videos: Sequence[Path], instruction: str) -> ScoredVideos:
    """Score videos for one instruction with the teacher. A video that cannot be read is `Failed`.

    vLLM's engine runs in an actor of `cluster.teacher`; the other backends run in this process.

    Raises:
        UserError: no video can be read, the instruction is empty, or the teacher cannot be loaded.
    """
    requests = _requests(videos, instruction)
    config = check_ready(Preflight("label", config), room=config.teacher.backend == "vllm")
    training_range = teacher_training_range(config.teacher)
    if config.teacher.backend != "vllm":
        from roboalign_ray.judge.teacher.backends import open_teacher

        teacher = open_teacher(config.teacher)
        return _scored(ServedTeacher(teacher.name, teacher, training_range), requests)
    from roboalign_ray.pipelines.cluster.runtime import start_ray
    from roboalign_ray.pipelines.label.teacher_pool import teacher_pool

    with start_ray(config.cluster, worker_logs=False), teacher_pool(config) as pool:
        return _scored(ServedTeacher(pool.name, pool, training_range), requests)


def run_student_score(config: JobConfig, videos: Sequence[Path], instruction: str) -> ScoredVideos:
    """Score videos for one instruction with the student, in this process. A video that cannot be read is `Failed`.

    Raises:
        UserError: no video can be read, the instruction is empty, or there is no student.
    """
    requests = _requests(videos, instruction)
    folder = student_folder(config)
    return _scored(StudentJudge(Student.load(folder), TrainingRange.load(folder)), requests)


def _requests(videos: Sequence[Path], instruction: str) -> list[JudgeRequest | Failed]:
    """One request per video, in order; `Failed` for a video that cannot be read.

    Raises:
        UserError: no video can be read; it is the error of the first video.
    """
    requests: list[JudgeRequest | Failed] = []
    first: UserError | None = None
    for path in videos:
        try:
            requests.append(read_request(path, instruction, name=str(path)))
        except UserError as error:
            first = first or error
            requests.append(Failed(error.line(), "input"))
    if first is not None and all(isinstance(request, Failed) for request in requests):
        raise first
    return requests


def _scored(judge: ServedJudge, requests: Sequence[JudgeRequest | Failed]) -> ScoredVideos:
    """Judge the videos that could be read, and return results for all videos in order."""
    judgements = iter(judge.judge([request for request in requests if isinstance(request, JudgeRequest)]))
    outcomes = [request if isinstance(request, Failed) else next(judgements) for request in requests]
    return ScoredVideos(judge.name, judge.version, outcomes)
