"""How a trained teacher wants to be asked: kept beside its weights, compared whenever it is loaded.

A model that learned from eight frames under one prompt answers worse, and says nothing of it, when it is shown sixteen
under another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.judge.teacher.prompt import worded

_FILE = "asking.json"
_KEYS = ("frames", "pixels", "reasoning", "score_step", "prompt")


def write_asking(folder: Path, config: TeacherConfig) -> None:
    """Keep what a question looked like in training."""
    text = json.dumps(_asking(config), indent=2, ensure_ascii=False) + "\n"
    (folder / _FILE).write_text(text, encoding="utf-8")


def check_asking(source: str, config: TeacherConfig) -> None:
    """Whether a model will be asked as it was trained; one that keeps no such file may be asked anyhow, in words.

    Raises:
        UserError: a setting differs, the file cannot be read, or a published model would be told neither rubric nor
            the answer's form.
    """
    path = Path(source) / _FILE
    if not path.is_file():
        published = "/" in source and not Path(source).is_dir()
        if published and config.prompt.rubric == "none" and not config.prompt.describe_answer:
            raise UserError(
                f"'{source}' would be asked by the instruction alone, which only a teacher trained so understands",
                where="teacher.prompt",
                remedy="take the teacher of profile paper_rt1, or set rubric and describe_answer",
            )
        return
    trained = read_object(path, "teacher's prompt settings", remedy="train the teacher again")
    asked = _asking(config)
    for key, value in trained.items():
        if key in asked and asked[key] != value:
            raise UserError(
                f"this teacher was trained with {key} {value!r}, and would be asked with {asked[key]!r}",
                where=f"teacher.{key}",
                remedy="set it so, or take the profile that it was trained with (published models: paper_rt1)",
            )


def _asking(config: TeacherConfig) -> dict[str, Any]:
    """The settings by dotted key, JSON types."""
    told: dict[str, Any] = {}
    config = config.model_copy(update={"prompt": worded(config.prompt)})
    for key, value in config.model_dump(mode="json", include=set(_KEYS)).items():
        told |= {f"{key}.{name}": part for name, part in value.items()} if key == "prompt" else {key: value}
    return told
