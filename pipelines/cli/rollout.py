"""`roboalign rollout`: write a world model's predictions to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from roboalign_ray.pipelines.cli.jobs import Json, Out, Overrides, job_and_folder


def rollout(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A profile's name, or the path of a .yaml file.")
    ] = "demo",
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Start frame: PNG, JPEG, WebP or BMP.")
    ] = None,
    actions: Annotated[
        Path | None,
        typer.Option(
            "--actions", metavar="FILE", help="Actions for an image, one row per frame: .npy, .csv or .json."
        ),
    ] = None,
    instruction: Annotated[
        str, typer.Option("--instruction", "-i", help="The sentence given to the robot, with --image.")
    ] = "",
    episode: Annotated[
        str | None,
        typer.Option(
            "--episode", metavar="ID", help="Start from this episode of the store, with its own actions."
        ),
    ] = None,
    start: Annotated[
        int, typer.Option("--start", min=0, help="With --episode: number of the start frame.")
    ] = 0,
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon", min=1, help="Frames to predict.", show_default="all actions, or rollout.horizon"
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=64, help="Number of rollouts, each with its own seed.")
    ] = 1,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Seed of the first sample; the next ones have the next numbers."),
    ] = 0,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Roll out a world model and write a video, a GIF and a LeRobot v3.0 dataset.

    Starts from an image and a file of actions, or from an episode of the job's store; with an episode, the first panel
    shows the real continuation. OUT gets rollout.mp4, rollout.gif, dataset/ and rollout.json, which describes the
    rollout.

    \b
    [bold]Examples[/bold]
      roboalign rollout --episode metaworld/drawer-open/0/expert --samples 4 --out runs/rollout
      roboalign rollout --image start.png --actions actions.csv -i "open the drawer" --out runs/mine
      roboalign rollout mine.yaml --episode ID --set world_model_weights=runs/mine_aligned/aligned --out runs/after
    """
    config, folder = job_and_folder(profile, overrides, out)
    folder = folder if out is not None else folder / "rollout"
    from roboalign_ray.pipelines.rollout.job import RolloutRequest, run_rollout

    request = RolloutRequest(image, actions, episode, start, instruction, horizon, samples, seed)
    files = run_rollout(config, request, folder)
    if as_json:
        shape = dict(zip(("samples", "frames", "views"), files.frames.shape, strict=False))
        typer.echo(json.dumps({"out": str(files.out), **shape, "notes": list(files.notes)}, indent=2))
        return
    for note in files.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{files.frames.shape[0]} x {files.frames.shape[1]} frames: {files.out / 'rollout.mp4'}")
