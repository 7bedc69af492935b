"""What a trained model's folder says of the run that made it: settings, command, versions, and the models it needs.

    profile.yaml      the resolved settings, as a profile
    provenance.json   everything else, see `RunRecord`

Both may be shared: secrets in URIs are masked, and of an absolute path the last name is left. They are written into a
folder that is not in place yet, so that a model in place always has them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from roboalign_ray import __version__
from roboalign_ray.foundation.environment import versions
from roboalign_ray.foundation.machine_paths import shareable
from roboalign_ray.foundation.storage.readers import parse_json, read_bytes, validated

PROFILE, RECORD = "profile.yaml", "provenance.json"
PACKAGES = ("torch", "ray", "transformers", "deepspeed", "numpy")
_MOST_BYTES = 1 << 20
_CHUNK = 1 << 20
_WEIGHTS = (".safetensors", ".json")
_NOT_WEIGHTS = ("training.json", RECORD)  # files beside a model that say how it was made

Text = Annotated[str, Field(max_length=4096)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelReference(_Strict):
    """A model that another one was trained with.

    Attributes:
        source: where it came from: "shipped", or its folder's last name.
        files: its files' SHA-256 by name.
    """

    source: Text
    files: dict[Text, Sha256] = Field(min_length=1, max_length=100)

    @classmethod
    def of(cls, folder: Path, source: str) -> ModelReference:
        """A reference to the model in a folder."""
        files = {
            path.name: _sha256(path)
            for path in sorted(folder.iterdir())
            if path.suffix in _WEIGHTS and path.name not in _NOT_WEIGHTS
        }
        return cls(source=shareable(source), files=files)


class ParentRecord(_Strict):
    """The run that this one is a fork of, and how many updates that had done."""

    run: RunId
    step: NonNegativeInt


class RunRecord(_Strict):
    """How a model was made.

    Attributes:
        format: of this record.
        job: "align", or what was trained.
        step: updates or optimizer steps done.
        command: the command line, or the script that called the library.
        versions: of Python, this library, and the packages that results depend on.
        platform: system and processor.
        run: id of an alignment run; None for others.
        parent: where a forked run began.
        tokenizer: that the model stands on; None where it needs none.
        action_card: hash of the action card beside the model; None where there is none.
    """

    format: Literal[1] = 1
    job: Text
    step: NonNegativeInt
    command: list[Text] = Field(max_length=1000)
    versions: dict[Text, Text] = Field(max_length=100)
    platform: Text
    run: RunId | None = None
    parent: ParentRecord | None = None
    tokenizer: ModelReference | None = None
    action_card: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None


def this_command() -> list[str]:
    """The command line of this process; the program by its name alone."""
    program, *arguments = sys.argv or [""]
    return shareable([Path(program).name or "python", *arguments])


def describe(
    job: str,
    step: int,
    command: Sequence[str],
    *,
    run: str | None = None,
    parent: Mapping[str, object] | None = None,
    tokenizer: ModelReference | None = None,
    action_card: str | None = None,
) -> RunRecord:
    """A record with this process's versions and platform; arguments as its attributes."""
    return RunRecord(
        job=job,
        step=step,
        command=[argument[:4096] for argument in shareable(list(command))][:1000],
        versions={"roboalign_ray": __version__, **versions(PACKAGES)},
        platform=f"{platform.system()} {platform.machine()}",
        run=run,
        parent=ParentRecord.model_validate(parent) if parent else None,
        tokenizer=tokenizer,
        action_card=action_card,
    )


def write_record(folder: Path, record: RunRecord, profile: str) -> None:
    """Write both files.

    Args:
        folder: not in place yet.
        profile: YAML that may be shared.
    """
    (folder / PROFILE).write_text(profile, encoding="utf-8")
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> RunRecord:
    """The record in a model's folder.

    Raises:
        UserError: there is none, or a field is missing or wrong.
    """
    path = folder / RECORD
    value = parse_json(read_bytes(path, "record of a run", most_bytes=_MOST_BYTES), where=str(path))
    return validated(value, RunRecord, "record of a run", where=str(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
