"""Judging a few videos at once: read them, ask the teacher or the student, hand back what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.weights import student_folder
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.served import ServedJudgement, ServedStudent, compared
from roboalign_ray.judge.student import Student
from roboalign_ray.judge.teacher.protocol import JudgeRequest, TeacherJudgement, read_request
from roboalign_ray.judge.teacher.sources import teacher_training_range
from roboalign_ray.judge.training_range import Seen, TrainingRange


@dataclass(frozen=True)
class ScoredVideos:
    """What a judge says of several videos.

    Attributes:
        judge: "student", or the teacher's name.
        version: of a student.
        outcomes: one per video, in order.
        seen: how each compares with the judge's training clips; None where that is not known, or there is no score.
    """

    judge: str
    version: int | None
    outcomes: Sequence[TeacherJudgement | ServedJudgement | Failed]
    seen: list[Seen | None]


def run_score(config: JobConfig, videos: Sequence[Path], instruction: str) -> ScoredVideos:
    """The teacher judges videos against one instruction.

    vLLM's engine runs in an actor of `cluster.teacher`; the other backends in this process.

    Raises:
        UserError: a video cannot be read or is too short, the instruction is empty, or the teacher cannot be made.
    """
    requests = [read_request(path, instruction, name=str(path)) for path in videos]
    training_range = teacher_training_range(config.teacher)
    if config.teacher.backend != "vllm":
        from roboalign_ray.judge.teacher.opening import open_teacher

        teacher = open_teacher(config.teacher)
        return _scored(teacher.name, None, requests, teacher.judge(requests), training_range)
    from pipelines.judge_pool import teacher_pool
    from pipelines.runtime import start_ray

    with start_ray(config.cluster, worker_logs=False), teacher_pool(config) as pool:
        return _scored(pool.name, None, requests, pool.judge(requests), training_range)


def run_student_score(config: JobConfig, videos: Sequence[Path], instruction: str) -> ScoredVideos:
    """The student judges videos against one instruction, in this process.

    Raises:
        UserError: a video cannot be read or is too short, the instruction is empty, or there is no student.
    """
    requests = [read_request(path, instruction, name=str(path)) for path in videos]
    folder = student_folder(config)
    student = ServedStudent(Student.load(folder))
    outcomes = student.judge(requests)
    return _scored(student.name, student.version, requests, outcomes, TrainingRange.load(folder))


def _scored(
    judge: str,
    version: int | None,
    requests: Sequence[JudgeRequest],
    outcomes: Sequence[TeacherJudgement | ServedJudgement | Failed],
    training_range: TrainingRange | None,
) -> ScoredVideos:
    seen = [
        None if isinstance(outcome, Failed) else compared(request, training_range)
        for request, outcome in zip(requests, outcomes, strict=True)
    ]
    return ScoredVideos(judge, version, outcomes, seen)
