"""Judging a few videos at once: read them, ask the teacher or the student, hand back what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.weights import student_folder
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.served import ServedJudgement, ServedStudent
from roboalign_ray.judge.student import Student
from roboalign_ray.judge.teacher.protocol import TeacherJudgement, read_request


def run_score(config: JobConfig, videos: Sequence[Path], instruction: str) -> list[TeacherJudgement | Failed]:
    """The teacher judges videos against one instruction.

    vLLM's engine runs in an actor of `cluster.teacher`; the other backends in this process.

    Raises:
        UserError: a video cannot be read or is too short, the instruction is empty, or the teacher cannot be made.
    """
    requests = [read_request(path, instruction, name=str(path)) for path in videos]
    if config.teacher.backend != "vllm":
        from roboalign_ray.judge.teacher.opening import open_teacher

        return open_teacher(config.teacher).judge(requests)
    from pipelines.judge_pool import teacher_pool
    from pipelines.runtime import start_ray

    with start_ray(config.cluster, worker_logs=False), teacher_pool(config) as pool:
        return pool.judge(requests)


def run_student_score(
    config: JobConfig, videos: Sequence[Path], instruction: str
) -> list[ServedJudgement | Failed]:
    """The student judges videos against one instruction, in this process.

    Raises:
        UserError: a video cannot be read or is too short, the instruction is empty, or there is no student.
    """
    requests = [read_request(path, instruction, name=str(path)) for path in videos]
    return ServedStudent(Student.load(student_folder(config))).judge(requests)
