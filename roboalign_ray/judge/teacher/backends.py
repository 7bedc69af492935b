"""Opens the teacher of a config, if it needs no cluster."""

from __future__ import annotations

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.judge.protocol import TeacherJudge


def open_teacher(config: TeacherConfig) -> TeacherJudge:
    """Open a transformers or server teacher; vLLM's engine is created by its actor.

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
