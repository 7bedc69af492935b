"""`roboalign reproduce`: experiments of this project, made again with one command each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.pipelines.cli.options import Json, Out, Overrides, Profile, Quiet, run_folder

HELP = """Make an experiment again: several alignment runs, judged side by side. Started again, it goes on.

\b
[bold]Examples[/bold]
  roboalign reproduce alignment
  roboalign reproduce hacking --set alignment.updates=40
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Runs of every arm; of alignment's, of the judged one.")
]


@app.command()
def alignment(
    profile: Profile = "reproduce",
    seeds: Seeds = 3,
    single: Annotated[int, typer.Option("--single", min=1, help="Runs on each single metric.")] = 1,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align on the judge's scores, on LPIPS alone and on SSIM alone, equally many updates each; score all of them.

    Held-out rollouts are scored per dimension by the judges of evaluation.judges. Runs that are there already are
    kept, so that more of them can be asked for later.

    \b
    [bold]Examples[/bold]
      roboalign reproduce alignment
      roboalign reproduce alignment --seeds 5 --single 5 --out runs/five
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    from roboalign_ray.pipelines.evaluate.reproduce import alignment_table, run_alignment

    folder = run_folder(config, out)
    told = run_alignment(config, folder, seeds=seeds, single=single, quiet=quiet)
    typer.echo(json.dumps(told, indent=2) if as_json else alignment_table(told))


@app.command()
def hacking(
    profile: Profile = "hacking",
    seeds: Seeds = 1,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align on a weak student, once left as it is and once re-distilled on fresh rollouts; compare the curves.

    \b
    [bold]Examples[/bold]
      roboalign reproduce hacking
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    from roboalign_ray.pipelines.evaluate.reproduce import hacking_table, run_hacking

    told = run_hacking(config, run_folder(config, out), seeds=seeds, quiet=quiet)
    typer.echo(json.dumps(told, indent=2) if as_json else hacking_table(told))
