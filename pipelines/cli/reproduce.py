"""`roboalign reproduce`: repeat this project's experiments with one command each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.options import (
    Json,
    Out,
    Overrides,
    Profile,
    Quiet,
    folder_to_write,
    run_folder,
)

HELP = """Repeat an experiment: several alignment runs and their scores. An interrupted experiment resumes.

\b
[bold]Examples[/bold]
  roboalign reproduce alignment
  roboalign reproduce hacking --set alignment.updates=40
  roboalign reproduce persistence
  roboalign reproduce planning --task window-close --task drawer-close --starts 5
"""

OF_MODEL = {"token": "reproduce", "diffusion": "reproduce_diffusion"}  # profiles of the world models

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Runs of every arm; in 'alignment', only of the judged arm.")
]


@app.command()
def alignment(
    profile: Annotated[
        str | None,
        typer.Argument(
            metavar="PROFILE",
            help="A profile's name, or the path of a .yaml file.",
            show_default="of --model",
        ),
    ] = None,
    model: Annotated[
        Literal["token", "diffusion"] | None,
        typer.Option(
            "--model",
            help="World model of the experiment, with a profile of its own: 'reproduce', or 'reproduce_diffusion'.",
            show_default="token",
        ),
    ] = None,
    seeds: Seeds = 3,
    single: Annotated[int, typer.Option("--single", min=1, help="Runs on each single metric.")] = 1,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align on the judge's scores, on LPIPS alone and on SSIM alone, with equal numbers of updates; score all models.

    The judges of evaluation.judges score held-out rollouts per dimension. Existing runs are kept, so that more can be
    added later.

    \b
    [bold]Examples[/bold]
      roboalign reproduce alignment
      roboalign reproduce alignment --seeds 5 --single 5 --out runs/five
      roboalign reproduce alignment --model diffusion
    """
    quiet = quiet or as_json
    if profile and model:
        raise UserError(
            "a profile says which world model it is of", where="--model", remedy="give one of the two"
        )
    config = resolve_job(profile or OF_MODEL[model or "token"], overrides or ())
    from roboalign_ray.pipelines.evaluate.reproduce import alignment_table, run_alignment

    folder = run_folder(config, out)
    result = run_alignment(config, folder, seeds=seeds, single=single, quiet=quiet)
    typer.echo(json.dumps(result, indent=2) if as_json else alignment_table(result))


@app.command()
def hacking(
    profile: Profile = "hacking",
    seeds: Seeds = 1,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align on a weak student, without and with re-distillation on fresh rollouts, and compare the curves.

    \b
    [bold]Examples[/bold]
      roboalign reproduce hacking
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    from roboalign_ray.pipelines.evaluate.reproduce import hacking_table, run_hacking

    result = run_hacking(config, run_folder(config, out), seeds=seeds, quiet=quiet)
    typer.echo(json.dumps(result, indent=2) if as_json else hacking_table(result))


@app.command()
def persistence(
    profile: Profile = "persistence",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of every arm.")] = 3,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a diffusion world model further in three ways, and compare how long its rollouts last.

    Teacher-forced on real frames, supervised on its own frames, and by reinforcement learning on its own frames, with
    equally many optimizer steps on equally many clips. Held-out windows of 60 frames, per view: curves, windows won
    against the base and against the teacher-forced arm with a sign test, and one page with videos side by side.

    \b
    [bold]Examples[/bold]
      roboalign reproduce persistence
      roboalign reproduce persistence --seeds 5 --set alignment.updates=120 --out runs/longer
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    from roboalign_ray.pipelines.evaluate.persistence import PAGE, TABLES, run_persistence

    folder = run_folder(config, out)
    command = ["roboalign", *sys.argv[1:]]
    result = run_persistence(config, folder, command=command, seeds=seeds, quiet=quiet)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo((folder / TABLES).read_text(encoding="utf-8"))
    typer.echo(f"report: {folder / PAGE}")


@app.command()
def planning(
    profile: Profile = "demo",
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="TASK", help="May be repeated.", show_default="the learned cost's tasks"
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="ROW", help="An agent. May be repeated.", show_default="all rows"),
    ] = None,
    starts: Annotated[int, typer.Option("--starts", min=1, max=10000, help="Start states per task.")] = 20,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, by Ray.")] = 1,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Run directory.",
            show_default="runs/<profile's name>/planning",
            parser=folder_to_write,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare agents in closed loop: nothing, random, the expert, and planners in the simulator and the world model.

    Success rates with Wilson intervals, and the predicted beside the real cost of plans. Complete episodes are kept, so
    that rows, tasks and starts can be added later.

    \b
    [bold]Examples[/bold]
      roboalign reproduce planning --set agent.progress_weights=runs/cost/progress --out runs/planning
      roboalign reproduce planning --task window-close --row random --row model+goal --starts 5
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    from roboalign_ray.pipelines.planning.rows import TABLE, TableRequest, run_table, tasks_of
    from roboalign_ray.planning.closed_loop.table import ROWS

    folder = out or run_folder(config, None) / "planning"
    request = TableRequest(tuple(tasks or tasks_of(config)), tuple(rows or ROWS), starts, workers)
    command = ["roboalign", *sys.argv[1:]]
    result = run_table(config, folder, request, command=command, quiet=quiet)
    typer.echo(json.dumps(result, indent=2) if as_json else (folder / TABLE).read_text(encoding="utf-8"))
