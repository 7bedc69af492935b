"""Finds a teacher's weights, and checks that an adapter belongs to them."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.model_folders import check_model_folder
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.judge.student.training_range import TrainingRange

SHIPPED = "shipped"
_BASE_FILE = "base.json"  # file beside an adapter: the weights it was trained on
_ADAPTER_FILE = "adapter_config.json"
_PROBE = 1 << 20


def model_source(model: str) -> str:
    """The model source for transformers and vLLM: the folder of the shipped model, or any other name unchanged.

    Raises:
        UserError: the folder holds no model, or loading it would run code.
    """
    folder = _folder(model)
    if folder is not None and not (folder / "config.json").is_file():
        raise UserError(
            folder_fault(folder, "no model here: config.json is missing"),
            where=str(folder),
            remedy="set teacher.model to a model's name or to a folder written by 'roboalign judge train'",
        )
    if folder is None:
        return model
    check_model_folder(folder, str(folder))
    return str(folder.absolute())


def teacher_training_range(config: TeacherConfig) -> TrainingRange | None:
    """The range of the clips that a teacher was trained on; None if unknown, as for external models.

    Raises:
        UserError: the file of the range is damaged.
    """
    folder = _folder(config.model)
    if config.backend == "openai" or config.adapter or folder is None:
        return None
    return TrainingRange.load(folder)


def teacher_name(model: str, adapter: str | None) -> str:
    """The name of a teacher in labels."""
    name = model if model == SHIPPED else Path(model).name
    return f"vlm/{name}+{Path(adapter).name}" if adapter else f"vlm/{name}"


def describe_base(model: str, adapter: Path) -> None:
    """Write a file beside an adapter that names the weights it was trained on."""
    base = {"model": model, "fingerprint": _fingerprint(model_source(model))}
    (adapter / _BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")


def check_adapter(adapter: str, model: str) -> None:
    """Check that an adapter was trained on this model.

    Raises:
        UserError: there is no adapter, or it belongs to other weights.
    """
    folder = Path(adapter)
    if not (folder / _ADAPTER_FILE).is_file():
        raise UserError(folder_fault(folder, f"no adapter here: {_ADAPTER_FILE} is missing"), where=adapter)
    check_model_folder(folder, adapter)
    if (folder / "adapter_model.bin").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            "has its weights in adapter_model.bin, a pickle, which can run code",
            where=adapter,
            remedy="convert it to safetensors if you trust its source",
        )
    config = read_object(folder / _ADAPTER_FILE, "adapter config")
    trained_on, own = str(config.get("base_model_name_or_path")), folder / _BASE_FILE
    if own.is_file():
        base = read_object(own, "adapter's base model")
        trained_on = str(base.get("model"))
        fits = base.get("fingerprint") == _fingerprint(model_source(model))
    else:
        fits = trained_on.rstrip("/") in (model.rstrip("/"), model_source(model))
    if not fits:
        raise UserError(
            f"this adapter belongs to '{trained_on}', not to '{model}'",
            where=adapter,
            remedy="set teacher.model to the model it was trained on",
        )


def _folder(model: str) -> Path | None:
    """The folder of a model; None for a name that must be looked up."""
    if model == SHIPPED:
        return Path(str(importlib.resources.files("roboalign_ray") / "assets" / "teacher"))
    path = Path(model)
    looks_like_one = path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    return path if path.is_dir() or looks_like_one else None


def _fingerprint(source: str) -> str:
    """A fingerprint of weights without reading all of them: names, sizes and three pieces of every file.

    A name is unchanged.
    """
    if not Path(source).is_dir():
        return source
    digest = hashlib.sha256()
    for path in sorted(Path(source).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in (0, size // 2, max(0, size - _PROBE)):
                file.seek(place)
                digest.update(file.read(_PROBE))
    return digest.hexdigest()
