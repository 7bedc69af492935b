"""Reference pages as Markdown, read from the code: commands with their options, config keys with their meanings."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import typer.main
from rich.text import Text

from roboalign_ray.config.base import FrozenConfig
from roboalign_ray.config.job import JobConfig
from roboalign_ray.config.schema import described_keys
from roboalign_ray.pipelines.cli.main import app

_CLI_HEAD = """# Command line

Read from the command line itself: `roboalign COMMAND --help` says the same.

| Exit code | Meaning |
|---|---|
| 0 | success |
| 1 | a bug, with its traceback; or what the command checks does not hold (`chaos`, `align --replay`, `judge score`) |
| 2 | bad input, or a machine that stops the work, such as a full disk: one line |
| 130, 143 | Ctrl-C, SIGTERM |

| Environment variable | Meaning |
|---|---|
| `ROBOALIGN_CACHE` | folder of fetched weights, by default `~/.cache/roboalign` |
| `ROBOALIGN_NATIVE=0` | run the rollout engine on PyTorch, without the C library |
| `ROBOALIGN_JUDGE_TOKEN` | token that requests to a served judge must carry |
| `TMPDIR`, `RAY_TMPDIR` | temporary folders, of conversions and of Ray |
"""
_CONFIG_HEAD = """# Config

Every key of a profile, read from the config models. Set a key in a profile's YAML, or with `--set KEY=VALUE`.
`[published]` marks a value from the papers or their public code, `[ours]` a choice of this project.
"""


def cli_reference() -> str:
    """The command line as one Markdown page: every command with its text, options and examples."""
    parts = [_CLI_HEAD]
    for names, command in _commands(typer.main.get_command(app), ()):
        context = command.make_context(names[-1], [], resilient_parsing=True)
        prose, examples = _help(command.help or "")
        rows = [
            _option_row(*record) for option in command.params if (record := option.get_help_record(context))
        ]
        arguments = " ".join(
            f"[{option.metavar}]" if not option.required else option.metavar
            for option in command.params
            if option.metavar and not option.opts[0].startswith("-")
        )
        parts.append(f"## roboalign {' '.join(names)}\n\n{prose}\n")
        parts.append(f"```text\nroboalign {' '.join(names)} {arguments} [OPTIONS]\n```\n".replace("  ", " "))
        if rows:
            parts.append("| Option | Meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
        if examples:
            parts.append(f"Examples:\n\n```sh\n{examples}\n```\n")
    return "\n".join(parts)


def _commands(group: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*above, name))
        else:
            yield (*above, name), command


def _help(text: str) -> tuple[str, str]:
    """The prose of a help text, and its block of examples."""
    plain = Text.from_markup(inspect.cleandoc(text)).plain.replace("\\[", "[")
    prose, examples = [], ""
    for block in re.split(r"\n\s*\n", plain.replace("\b\n", "")):
        if block.startswith("Examples"):
            examples = textwrap.dedent(block.partition("\n")[2])
        else:
            prose.append(_escaped(block))
    return "\n\n".join(prose), examples


def _option_row(names: str, meaning: str) -> str:
    meaning = re.sub(r"\[default: \((.*?)\)", r"[default: \1", meaning)
    return f"| `{names.replace('|', chr(92) + '|')}` | {_escaped(meaning)} |"


def _escaped(text: str) -> str:
    """Text that Markdown and HTML leave as it is; code between backticks only keeps its cells apart."""
    prose, *rest = text.replace("|", r"\|").split("`")
    parts = [_literal(prose)] + [
        part if number % 2 == 0 else _literal(part) for number, part in enumerate(rest)
    ]
    return "`".join(parts)


def _literal(text: str) -> str:
    return re.sub(r"([*\[\]_])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def config_reference() -> str:
    """Every key of a profile as one Markdown page: a table for each section."""
    return "\n".join([_CONFIG_HEAD, *_section_tables(JobConfig, JobConfig(), "")])


def _section_tables(model: type[FrozenConfig], values: FrozenConfig, path: str) -> Iterator[str]:
    meanings = described_keys(model)
    properties = model.model_json_schema()["properties"]
    below: list[tuple[type[FrozenConfig], FrozenConfig, str]] = []
    rows = []
    for name in model.model_fields:
        value, key = getattr(values, name), f"{path}.{name}" if path else name
        if isinstance(value, FrozenConfig):
            below.append((type(value), value, key))
        else:
            kind = _kind(properties[name])
            rows.append(f"| `{name}` | {kind} | {_value(value)} | {_escaped(meanings.get(name, ''))} |")
    title = f"## {path}" if path else "## The job"
    summary = inspect.cleandoc(model.__doc__ or "").split("\n\nAttributes:")[0]
    yield f"{title}\n\n{_escaped(summary)}\n"
    if rows:
        yield "| Key | Values | Default | Meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for section in below:
        yield from _section_tables(*section)


def _value(value: Any) -> str:
    return f"`{json.dumps(value, default=str)}`"


def _kind(schema: dict[str, Any]) -> str:
    """What a key may hold, in words: from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{_plain(item)}`" for item in schema["enum"])
    if "const" in schema:
        return f"`{_plain(schema['const'])}`"
    kind = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true, false",
        "null": "null",
    }
    name = kind.get(schema.get("type", ""), "")
    if schema.get("type") == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_kind(items)}"
    if schema.get("type") == "object":
        return "mapping"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "&lt;"),
        )
        if key in schema and abs(schema[key]) < 2**53
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _plain(item: Any) -> str:
    return str(item).lower() if isinstance(item, bool) else str(item)
