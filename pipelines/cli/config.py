"""`roboalign config`: show profiles and their JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from roboalign_ray.config.loading import dump_yaml, resolve_job
from roboalign_ray.config.schema import profile_schema
from roboalign_ray.pipelines.cli.options import Json, Overrides, Profile

app = typer.Typer(no_args_is_help=True, help="Show profiles and their JSON schema.")


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there.", show_default="stdout")
    ] = None,
) -> None:
    """Print the JSON schema of profiles, for editors that complete and check YAML.

    In an editor with the YAML language server, a profile begins with
    [cyan]# yaml-language-server: $schema=profile.schema.json[/cyan]

    \b
    [bold]Examples[/bold]
      roboalign config schema --out profile.schema.json
    """
    text = json.dumps(profile_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command()
def show(profile: Profile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print a profile with all keys, after `extends` and --set are applied.

    \b
    [bold]Examples[/bold]
      roboalign config show demo
      roboalign config show mine.yaml --set alignment.updates=5
    """
    config = resolve_job(profile, overrides or ())
    typer.echo(json.dumps(config.public(), indent=2) if as_json else dump_yaml(config), nl=as_json)
