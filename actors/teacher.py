"""The teacher actor: holds one VLM on any backend, and judges the videos that it is sent."""

from __future__ import annotations

from collections.abc import Sequence

from roboalign_ray.config import JobConfig, TeacherConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.privileged.judge import PrivilegedJudge
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, TeacherJudge
from roboalign_ray.judge.teacher.backends import open_teacher


class TeacherActor:
    """Judges videos. The model is loaded when the actor starts, and again when it is restarted.

    Args:
        config: the teacher's.
        threads: torch threads.

    Raises:
        UserError: the model cannot be loaded, or its server does not answer.
    """

    def __init__(self, config: TeacherConfig, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        self._teacher, self._calls = open_vlm(config), 0

    def ready(self) -> str:
        """The teacher's name, as soon as its model is loaded."""
        return self._teacher.name

    def beat(self) -> int:
        """Number of completed calls. Called from another thread."""
        return self._calls

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request, in order."""
        outcomes = self._teacher.judge(requests)
        self._calls += 1
        return outcomes


def open_vlm(config: TeacherConfig) -> TeacherJudge:
    """The vision-language teacher of a config, vLLM's engine included.

    Raises:
        UserError: its model cannot be loaded, or its server does not answer.
    """
    if config.backend != "vllm":
        return open_teacher(config)
    from roboalign_ray.actors.teacher_engine import EngineTeacher

    return EngineTeacher(config)


def open_judge(config: JobConfig) -> TeacherJudge:
    """The judge that labels a job's fresh rollouts.

    Raises:
        UserError: as `open_vlm`.
    """
    if config.judge.relabel.teacher == "privileged":
        return PrivilegedJudge(config.bench.privileged)
    return open_vlm(config.teacher)
