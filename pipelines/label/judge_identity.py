"""Identifies a judge by what its scores depend on: weights and settings, not the machine that it runs on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.judge.data.score_record import JudgeIdentity
from roboalign_ray.judge.student.model import read_description
from roboalign_ray.judge.teacher.model_sources import model_source
from roboalign_ray.pipelines.cluster.weight_folders import student_folder

_CHUNK = 1 << 20
# Sections of the teacher that say how and where labels are made, and not which.
_HOW = ("labelling", "training", "small", "engine", "server", "batch")


def student_identity(config: JobConfig) -> JudgeIdentity:
    """The student of a job.

    Raises:
        UserError: there is none.
    """
    folder = student_folder(config)
    version = read_description(folder).get("version")
    return _identity("student", version if isinstance(version, int) else None, {}, folder)


def teacher_identity(config: JobConfig) -> JudgeIdentity:
    """The teacher of a job: its settings, and the files of its model where that is a folder.

    A server's model is known by its name alone.
    """
    teacher = config.teacher
    settings = teacher.model_dump(mode="json", exclude=set(_HOW))
    source = Path(model_source(teacher.model))
    folder = source if source.is_dir() and teacher.backend != "openai" else None
    return _identity(teacher.model, None, settings, folder)


def _identity(
    name: str, version: int | None, settings: Mapping[str, Any], folder: Path | None
) -> JudgeIdentity:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(folder.rglob("*")) if folder else ():
        if path.is_file() and path.suffix != ".md":
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    return JudgeIdentity(name, version, digest.hexdigest(), settings)
