"""The prompt settings of a trained teacher: stored beside its weights and compared whenever it is loaded.

A model that was trained with eight frames and one prompt silently scores worse with sixteen frames and another prompt.
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
    """Write the prompt settings of training."""
    text = json.dumps(_asking(config), indent=2, ensure_ascii=False) + "\n"
    (folder / _FILE).write_text(text, encoding="utf-8")


def check_asking(source: str, config: TeacherConfig) -> None:
    """Check that a model's prompt settings are those of its training. A model without such a file needs a full prompt.

    Raises:
        UserError: a setting differs, the file cannot be read, or the prompt for a published model contains neither the
            rubric nor the form of the answer.
    """
    path = Path(source) / _FILE
    if not path.is_file():
        published = "/" in source and not Path(source).is_dir()
        if published and config.prompt.rubric == "none" and not config.prompt.describe_answer:
            raise UserError(
                f"'{source}' would be given only the instruction, which needs a teacher that was trained that way",
                where="teacher.prompt",
                remedy="use the teacher of profile paper_rt1, or set rubric and describe_answer",
            )
        return
    trained = read_object(path, "teacher's prompt settings", remedy="train the teacher again")
    asked = _asking(config)
    for key, value in trained.items():
        if key in asked and asked[key] != value:
            raise UserError(
                f"this teacher was trained with {key} {value!r}, but is configured with {asked[key]!r}",
                where=f"teacher.{key}",
                remedy="use that value, or the profile that it was trained with (published models: paper_rt1)",
            )


def _asking(config: TeacherConfig) -> dict[str, Any]:
    """The prompt settings by dotted key, JSON types."""
    settings: dict[str, Any] = {}
    config = config.model_copy(update={"prompt": worded(config.prompt)})
    for key, value in config.model_dump(mode="json", include=set(_KEYS)).items():
        settings |= (
            {f"{key}.{name}": part for name, part in value.items()} if key == "prompt" else {key: value}
        )
    return settings
