"""Arguments and options of several commands, the folder of a run, and the output of a summary."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import UserError


def folder_to_write(text: str) -> Path:
    """The value of --out. An empty value, for example from an unset shell variable, would mean the current folder.

    Raises:
        UserError: the value is empty.
    """
    if not text.strip():
        raise UserError("is empty", where="--out", remedy="name a folder; '.' is the current one")
    return Path(text)


Profile = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE", help="A profile's name, or the path of a .yaml file.", show_default=True
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value, for example alignment.updates=5. May be repeated.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Run directory.",
        show_default="runs/<profile's name>",
        parser=folder_to_write,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars (implied by --json).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last complete checkpoint in OUT.")]


def job_and_folder(profile: str, overrides: Sequence[str] | None, out: Path | None) -> tuple[JobConfig, Path]:
    """The job, and the folder that it runs in."""
    config = resolve_job(profile, overrides or ())
    return config, run_folder(config, out)


def run_folder(config: JobConfig, out: Path | None) -> Path:
    """The folder of --out, or the one that the profile names."""
    return (out or Path(config.output) / config.name).expanduser()


def command_line(
    command: str, profile: str, overrides: Sequence[str] | None, folder: Path, *options: str
) -> str:
    """A command for a user to copy: the same job in the same folder."""
    sets = [word for override in overrides or () for word in ("--set", override)]
    return shlex.join(["roboalign", command, profile, *sets, "--out", str(folder), *options])


def show(summary: Mapping[str, Any], as_json: bool, prefix: str = "") -> None:
    """Print a job's summary: JSON, or one "key: value" per line."""
    if as_json:
        typer.echo(json.dumps(summary, indent=2, default=str))
        return
    for key, value in summary.items():
        if isinstance(value, Mapping):
            show(value, as_json, f"{prefix}{key}.")
        else:
            typer.echo(
                f"{prefix}{key}: {value:.6g}" if isinstance(value, float) else f"{prefix}{key}: {value}"
            )
