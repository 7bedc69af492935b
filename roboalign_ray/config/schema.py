"""Meanings of a profile's keys, and its JSON schema, with which editors complete and check profiles."""

from __future__ import annotations

import inspect
import re
from typing import Any

from roboalign_ray.config.base import FrozenConfig
from roboalign_ray.config.job import JobConfig

_ENTRY = re.compile(r"^([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)$")


def described_keys(model: type[FrozenConfig]) -> dict[str, str]:
    """The meaning of a section's keys, from the "Attributes:" part of its docstring, each on one line.

    Keys that are not in the docstring are left out.
    """
    _, _, part = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    meaning: dict[str, str] = {}
    names: list[str] = []
    for line in part.splitlines():
        if line and not line.startswith(" "):
            break
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent == 4 and (entry := _ENTRY.match(text)):
            names, text = entry[1].split(", "), entry[2]
            meaning |= dict.fromkeys(names, text)
        elif text and names:
            meaning |= {name: f"{meaning[name]} {text}" for name in names}
    return {name: text for name, text in meaning.items() if name in model.model_fields}


def profile_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a profile file: every key with its type, default and meaning, and `extends`.

    No key is required: missing keys come from the extended profile, or from the defaults.
    """
    schema = JobConfig.model_json_schema()
    sections = {cls.__name__: cls for cls in _sections(JobConfig)}
    for name, part in {"JobConfig": schema, **schema.get("$defs", {})}.items():
        part.pop("required", None)
        part.pop("description", None)
        if (section := sections.get(name)) is None:
            continue
        part["description"] = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        for key, text in described_keys(section).items():
            part["properties"][key]["description"] = text
    extends = {
        "type": "string",
        "description": "A profile's name, or the path of a .yaml file, to start from.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    schema["title"] = "roboalign profile"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _sections(model: type[FrozenConfig]) -> set[type[FrozenConfig]]:
    """`model` and every config class below it."""
    found = {model}
    if model.extensions is not None:
        found |= _sections(model.extensions.section)
    for field in model.model_fields.values():
        for cls in _classes(field.annotation):
            found |= _sections(cls)
    return found


def _classes(annotation: Any) -> list[type[FrozenConfig]]:
    if inspect.isclass(annotation) and issubclass(annotation, FrozenConfig):
        return [annotation]
    return [cls for argument in getattr(annotation, "__args__", ()) for cls in _classes(argument)]
