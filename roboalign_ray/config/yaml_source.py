"""Reads YAML text as plain values with their line numbers.

PyYAML alone drops positions, silently takes the last of two equal keys, reads `5e-5` as text (YAML 1.1 requires
`5.0e-5`) and `no` as false. Each of these leads to a confusing error far from its cause, so this reader corrects them.

A profile may come from an untrusted source. Its size, its depth and the number of values that its aliases stand for are
limited before any value is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from roboalign_ray.config.base import ConfigError

MOST_CHARACTERS = 256 * 1024
MOST_NODES = 20_000  # every use of an alias counts
MOST_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads every usual notation of a float, and only true and false as booleans."""

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
    """A mapping that was read from a file, with the positions of its keys.

    Attributes:
        values: nested plain values.
        origins: dotted path -> "file:line".
        file: the file's name in errors.
    """

    values: dict[str, Any]
    origins: dict[str, str]
    file: str


def parse_value(text: str, where: str) -> Any:
    """Parse one YAML value, the right-hand side of an override.

    Raises:
        ConfigError: the text is not YAML, or too large.
    """
    loader, node = _composed(text, where)
    return None if node is None else _constructed(loader, node, where)


def parse_mapping(text: str, file: str) -> Located:
    """Parse a YAML document whose top level is a mapping.

    Raises:
        ConfigError: it is not YAML, too large or not a mapping, or a key occurs twice; names file and line.
    """
    loader, node = _composed(text, file)
    if node is None:
        return Located({}, {}, file)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("holds no mapping of keys to values", where=file)
    origins: dict[str, str] = {}
    _locate(node, "", file, origins)
    return Located(_constructed(loader, node, file), origins, file)


def read_mapping(path: Path, file: str) -> Located:
    """`parse_mapping` of a file; a missing or unreadable one raises `ConfigError`."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError("no such file", where=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=file) from None
    return parse_mapping(text, file)


def _composed(text: str, where: str) -> tuple[_Loader, yaml.Node | None]:
    """The syntax tree of a text, with limited size; no value is made yet."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"is longer than {MOST_CHARACTERS} characters", where=where)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(
            f"is not valid YAML: {_problem(error)}", where=_position(error, where, text)
        ) from None
    except RecursionError:
        raise ConfigError(f"is nested more than {MOST_DEPTH} deep", where=where) from None
    if node is not None:
        _check_size(node, where)
    return loader, node


def _check_size(root: yaml.Node, where: str) -> None:
    """Walk the tree as it will be built: every use of an alias counts, and a recursive alias never ends."""
    count, waiting = 0, [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        here = f"{where}:{node.start_mark.line + 1}"
        if depth > MOST_DEPTH:
            raise ConfigError(
                f"is nested more than {MOST_DEPTH} deep",
                where=here,
                remedy="does an anchor hold its own alias?",
            )
        if count > MOST_NODES:
            raise ConfigError(
                f"stands for more than {MOST_NODES} values", where=here, remedy="use fewer aliases"
            )
        if isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]


def _constructed(loader: _Loader, node: yaml.Node, where: str) -> Any:
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {_problem(error)}", where=where) from None
    except (ValueError, OverflowError) as error:  # a date, or a number with thousands of digits
        raise ConfigError(f"holds a value that cannot be read ({error})", where=where) from None


def _problem(error: yaml.YAMLError) -> str:
    """The parser's message, without its multi-line excerpt."""
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _position(error: yaml.YAMLError, file: str, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{file}:{mark.line + 1}" if mark and "\n" in text else file


def _locate(node: yaml.MappingNode, prefix: str, file: str, origins: dict[str, str]) -> None:
    for key_node, value_node in node.value:
        path = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        here = f"{file}:{key_node.start_mark.line + 1}"
        if path in origins:
            raise ConfigError(f"key '{path}' stands twice", where=here, remedy=f"see also {origins[path]}")
        origins[path] = here
        if isinstance(value_node, yaml.MappingNode):
            _locate(value_node, path, file, origins)
