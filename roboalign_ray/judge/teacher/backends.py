"""The teacher that a config asks for, where it can be made without a cluster."""

from __future__ import annotations

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.judge.protocol import TeacherJudge


def open_teacher(config: TeacherConfig) -> TeacherJudge:
    """A transformers or server teacher; vLLM's engine is made by its actor.

    Raises:
        UserError: its model cannot be loaded, or its server does not answer.
        ValueError: the backend is vLLM.
    """
    if config.backend == "openai":
        from roboalign_ray.judge.teacher.server_backend import ServerTeacher

        return ServerTeacher(config)
    if config.backend == "transformers":
        from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

        return TransformersTeacher(config)
    raise ValueError(f"backend '{config.backend}' needs an actor")
