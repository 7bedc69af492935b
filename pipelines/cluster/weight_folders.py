"""Finds the folders of a job's weights: the folders named in its config, or those shipped with the package."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.world_model.registry import DESCRIPTION, folder_of

SHIPPED = "shipped"
_TOKENIZER_FILE, _WORLD_MODEL_FILES = "tokenizer.safetensors", ("model.safetensors", DESCRIPTION)
_STUDENT_FILE, _PAIRS_FILE = "student.safetensors", "statistics.json"


def tokenizer_folder(config: JobConfig) -> Path:
    """Folder of the tokenizer's weights.

    Raises:
        UserError: the folder has no weights.
    """
    return _folder(config.tokenizer_weights, "tokenizer", _TOKENIZER_FILE)


def world_model_folder(config: JobConfig) -> Path:
    """Folder of the world model.

    Raises:
        UserError: the folder has no weights.
    """
    named = config.world_model_weights
    remedy = "set world_model_weights to a folder written by 'roboalign pretrain'"
    if named == "shipped_diffusion":
        remedy = (
            "train it with: roboalign pretrain demo_diffusion --out runs/diffusion --set "
            "episodes.store=runs/two_views, and set world_model_weights=runs/diffusion/world_model"
        )
    return _checked(folder_of(named), "world_model", _WORLD_MODEL_FILES, remedy)


def student_folder(config: JobConfig) -> Path:
    """Folder of the student judge that an alignment job starts with.

    Raises:
        UserError: the folder has no student.
    """
    return _folder(
        config.judge.weights,
        "student",
        _STUDENT_FILE,
        remedy="set judge.weights to a folder written by 'roboalign distill'",
    )


def replay_folder(config: JobConfig) -> Path:
    """Folder of the judged pairs that relabelling mixes with new labels.

    Raises:
        UserError: the folder has no pairs.
    """
    return _folder(
        config.judge.replay,
        "pairs",
        _PAIRS_FILE,
        remedy="set judge.replay to a store made by 'roboalign bench build'",
    )


def _folder(named: str, kind: str, *files: str, remedy: str = "") -> Path:
    """The folder; it holds one of the files."""
    shipped = named == SHIPPED
    folder = (
        Path(str(importlib.resources.files("roboalign_ray") / "assets" / kind)) if shipped else Path(named)
    )
    remedy = remedy or f"set {kind}_weights to a folder written by 'roboalign pretrain'"
    return _checked(folder, kind, files, remedy)


def _checked(folder: Path, kind: str, files: Sequence[str], remedy: str) -> Path:
    """The folder, absolute, if it holds one of the files.

    Raises:
        UserError: it holds none.
    """
    if not any((folder / file).is_file() for file in files):
        raise UserError(
            folder_fault(folder, f"no {kind.replace('_', ' ')} here: {files[0]} is missing"),
            where=str(folder),
            remedy=remedy,
        )
    return folder.absolute()
