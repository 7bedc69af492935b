"""YAML text to plain values that remember the line they stand on.

PyYAML alone drops positions, takes the last of two equal keys without a word, reads `5e-5` as text (YAML 1.1 wants
`5.0e-5`) and `no` as false. Each of these turns into a puzzling error far from its cause, so this reader mends them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from roboalign_ray.config.base import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads every usual way of writing a float, and only true and false as truth values."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Located:
    """A mapping read from a file, and where each of its keys stands.

    Attributes:
        values: nested plain values.
        origins: dotted path -> "file:line".
        file: the file's name as errors show it.
    """

    values: dict[str, Any]
    origins: dict[str, str]
    file: str


def parse_value(text: str) -> Any:
    """One YAML value, as the right-hand side of an override holds it; raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)


def parse_mapping(text: str, file: str) -> Located:
    """A YAML document whose top level is a mapping.

    Raises:
        ConfigError: not YAML, not a mapping, or a key stands twice; names file and line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Located({}, {}, file)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("holds no mapping of keys to values", where=file)
        origins: dict[str, str] = {}
        _locate(node, "", file, origins)
        return Located(loader.construct_document(node), origins, file)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {problem(error)}", where=_position(error, file)) from None


def read_mapping(path: Path, file: str) -> Located:
    """`parse_mapping` of a file; a missing or unreadable one raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", where=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=file) from None
    return parse_mapping(text, file)


def problem(error: yaml.YAMLError) -> str:
    """What the parser minded, without its multi-line excerpt."""
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _position(error: yaml.YAMLError, file: str) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{file}:{mark.line + 1}" if mark else file


def _locate(node: yaml.MappingNode, prefix: str, file: str, origins: dict[str, str]) -> None:
    for key_node, value_node in node.value:
        path = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        here = f"{file}:{key_node.start_mark.line + 1}"
        if path in origins:
            raise ConfigError(f"key '{path}' stands twice", where=here, remedy=f"see also {origins[path]}")
        origins[path] = here
        if isinstance(value_node, yaml.MappingNode):
            _locate(value_node, path, file, origins)
