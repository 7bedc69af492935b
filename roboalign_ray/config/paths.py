"""Marks settings that name files, and makes relative paths absolute, once, before they are sent to workers.

Workers run in other folders than the command, and on other machines. A relative path is relative to the folder in which
the command was started, wherever it was written: on the command line, in a profile or in one that it extends.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from roboalign_ray.config.base import ConfigError, FrozenConfig

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
Config = TypeVar("Config", bound=FrozenConfig)


@dataclass(frozen=True)
class PathKind:
    """Marks a setting that names a file or a folder.

    Attributes:
        keywords: values that are not paths.
        or_name: whether a value may also be a model's name; it is a path if such a folder exists or if it is written
            like one ("./model", "~/model").
        suffix: ending of files; a value without it is a name. "" where any value may be a path.
    """

    keywords: frozenset[str] = frozenset()
    or_name: bool = False
    suffix: str = ""


Place = Annotated[str, PathKind()]
PlaceOrNone = Annotated[str | None, PathKind()]
ShippedOrFolder = Annotated[str, PathKind(frozenset({"shipped"}))]
# What stands inside the package, by the name that settings give it: folders of `roboalign_ray/assets`.
SHIPPED_WORLD_MODELS = {"shipped": "world_model", "shipped_diffusion": "diffusion"}
SHIPPED_STORES = {"shipped": "episodes", "shipped_two_views": "episodes_two_views"}
WorldModelOrFolder = Annotated[str, PathKind(frozenset(SHIPPED_WORLD_MODELS))]
WorldModelOrNone = Annotated[str | None, PathKind(frozenset(SHIPPED_WORLD_MODELS))]
StoreOrFolder = Annotated[str, PathKind(frozenset(SHIPPED_STORES))]
NameOrYaml = Annotated[str | None, PathKind(suffix=".yaml")]
ModelOrFolder = Annotated[str, PathKind(frozenset({"shipped", "hashed", "patches"}), or_name=True)]


def with_absolute_paths(config: Config, prefix: str = "") -> Config:
    """The same settings with absolute paths. "~" is the home folder; URIs, keywords and models' names do not change.

    Args:
        prefix: dotted path of `config` in the whole tree, ending in a dot; for messages.

    Raises:
        ConfigError: the current folder, or the home folder in a path, does not exist.
    """
    changes: dict[str, object] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, FrozenConfig):
            changes[name] = with_absolute_paths(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            kind = next((mark for mark in field.metadata if isinstance(mark, PathKind)), None)
            changes[name] = _absolute(value, kind, f"{prefix}{name}") if kind else value
    return config.model_copy(update=changes)


def absolute_path(text: str | Path, where: str = "") -> Path:
    """The absolute path, relative to the current folder; "~" is the home folder. Links are not resolved.

    Raises:
        ConfigError: the current folder, or the home folder in the path, does not exist.
    """
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"'{text}' names a home folder that is not known", where=where) from None
    except FileNotFoundError:
        raise ConfigError(
            "the current folder has been removed", where=where, remedy="change into another folder"
        ) from None


def shipped_or_folder(name: str | Path, shipped: Mapping[str, str]) -> Path:
    """The folder that a setting names: inside the package where `shipped` has the name."""
    if (asset := shipped.get(str(name))) is None:
        return Path(name)
    return Path(str(importlib.resources.files("roboalign_ray") / "assets" / asset))


def is_uri(text: str) -> bool:
    """Whether a text is a URI such as s3://bucket/folder."""
    return _URI.match(text) is not None


def _absolute(value: str, kind: PathKind, where: str) -> str:
    if not value or value in kind.keywords or is_uri(value) or not value.endswith(kind.suffix):
        return value
    written_as_path = value.startswith(("./", "../", "~", "/"))
    if kind.or_name and not written_as_path and not Path(value).is_dir():
        return value
    return str(absolute_path(value, where))
