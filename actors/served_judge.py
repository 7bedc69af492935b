"""Opens the judge of a job in a worker: for the replicas of the service, and for the actors of a scoring job."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from roboalign_ray.config import JobConfig
from roboalign_ray.judge.serving.http import ServedJudge, ServedTeacher

JudgeKind = Literal["student", "teacher"]


def open_served_judge(
    judge: JudgeKind, config: JobConfig, student: Path | None, threads: int = 1
) -> ServedJudge:
    """The judge, with its model loaded on the worker's device.

    Args:
        student: folder of the student.
        threads: torch threads.

    Raises:
        UserError: the model cannot be loaded.
    """
    import torch

    if judge == "teacher":
        from roboalign_ray.actors.teacher import TeacherActor
        from roboalign_ray.judge.teacher.model_sources import teacher_training_range

        teacher = TeacherActor(config.teacher, threads)
        return ServedTeacher(teacher.ready(), teacher, teacher_training_range(config.teacher))
    from roboalign_ray.judge.student.judge import StudentJudge
    from roboalign_ray.judge.student.model import Student
    from roboalign_ray.judge.student.training_range import TrainingRange

    torch.set_num_threads(threads)
    assert student is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return StudentJudge(Student.load(student).to(device), TrainingRange.load(student))
