"""`roboalign agent`: plan in a world model, act in Meta-World."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.pipelines.cli.options import (
    Json,
    Out,
    Overrides,
    Profile,
    Quiet,
    folder_to_write,
    job_and_folder,
    run_folder,
)

HELP = """Plan in a world model and act in the simulator, and train the cost that plans are compared by.

\b
[bold]Examples[/bold]
  roboalign agent train-cost demo --set episodes.store=stores/detours --out runs/cost
  roboalign agent run window-close --set agent.progress_weights=runs/cost/progress
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)


@app.command("run")
def run(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A Meta-World task, for example window-close.")],
    profile: Annotated[
        str, typer.Option("--profile", metavar="PROFILE", help="A profile's name, or a .yaml file.")
    ] = "demo",
    row: Annotated[
        str,
        typer.Option(
            "--row",
            metavar="ROW",
            help="The agent: model+progress, model+goal, model+student, simulator+progress, simulator+privileged, "
            "expert, held-expert, random or nothing.",
        ),
    ] = "model+progress",
    episodes: Annotated[int, typer.Option("--episodes", min=1, max=1000, help="Start states.")] = 1,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Run directory.",
            show_default="runs/<profile's name>/agent/<task>",
            parser=folder_to_write,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plan, act in the simulator for a few decisions, look, plan again, at the world model's own rate.

    OUT gets a video per episode with the outcome beside the plan, agent.json and agent.html. The rows with "simulator"
    plan in the true simulator, so that a failure can be told from one of the world model.

    \b
    [bold]Examples[/bold]
      roboalign agent run window-close --set agent.progress_weights=runs/cost/progress
      roboalign agent run drawer-close --row model+goal --episodes 5 --out runs/drawer
      roboalign agent run faucet-open --row simulator+privileged
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    folder = out or run_folder(config, None) / "agent" / task
    from roboalign_ray.pipelines.planning.run_agent import run_agent

    command = ["roboalign", *sys.argv[1:]]
    result = run_agent(config, task, folder, row=row, episodes=episodes, command=command, quiet=quiet)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    solved = sum(episode["success"] for episode in result["episodes"])
    typer.echo(f"{solved} of {len(result['episodes'])} solved: {result['page']}")


@app.command("train-cost")
def train_cost(
    profile: Profile,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the learned progress cost on a store with the simulator's labels.

    A network learns to read two distances off single frames: of the object to its target, and of the hand to the
    object. It is measured on held-out start states. An interrupted run resumes. OUT/progress is its folder.

    \b
    [bold]Examples[/bold]
      roboalign agent train-cost demo --set episodes.store=stores/detours --out runs/cost
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.train.progress import run_train_progress

    result = run_train_progress(config, folder, quiet=quiet)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for name, error in result["errors"].items():
        typer.echo(
            f"{name:24} object to target {error['object_target_cm']:.2f} cm, "
            f"hand to object {error['hand_object_cm']:.2f} cm, {error['starts']} held-out starts"
        )
    typer.echo(f"weights: {result['weights']}")
