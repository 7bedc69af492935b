"""`roboalign executability`: what robots can execute, and whether a world model's rollouts can be executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.options import (
    Json,
    Out,
    Overrides,
    Profile,
    Quiet,
    folder_to_write,
    job_and_folder,
    show,
)
from roboalign_ray.pipelines.cli.tables import Column, print_columns

if TYPE_CHECKING:
    from roboalign_ray.config import JobConfig
    from roboalign_ray.inverse_dynamics.embodiment import Embodiment

HELP = """What a robot can execute, read from video by an inverse dynamics model.

\b
[bold]Examples[/bold]
  roboalign executability profiles
  roboalign pretrain demo --stage inverse_dynamics --out runs/inverse
  roboalign executability calibrate demo --model runs/inverse/inverse_dynamics --out runs/inverse
  roboalign executability measure demo --model runs/inverse/inverse_dynamics
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="DIR",
        help="Folder of the inverse dynamics model.",
        show_default="reward.executability.model",
    ),
]


@app.command()
def profiles(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="One profile, with the source of each number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the embodiment profiles, or show one with its limits and their sources.

    \b
    [bold]Examples[/bold]
      roboalign executability profiles
      roboalign executability profiles droid_franka
    """
    from roboalign_ray.inverse_dynamics.embodiment import load_embodiment, shipped_names

    if name is not None:
        profile = load_embodiment(name)
        if as_json:
            show(profile.model_dump(mode="json"), as_json)
        else:
            _print_profile(profile)
        return
    found = [load_embodiment(shipped) for shipped in shipped_names()]
    if as_json:
        typer.echo(json.dumps([profile.model_dump(mode="json") for profile in found], indent=2))
        return
    columns = [
        Column("robots", [", ".join(profile.robots) for profile in found]),
        Column("dimensions", [str(profile.dims) for profile in found]),
        Column("rate (Hz)", [f"{1 / profile.dt:.4g}" for profile in found]),
    ]
    print_columns(Console(markup=False), Column("profile", [profile.name for profile in found]), columns)


@app.command()
def fit(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Episode store; its train split is read.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The .yaml file to write.", parser=folder_to_write)
    ],
    percentile: Annotated[
        float, typer.Option(min=50, max=100, help="Percentile of the recorded motion that is a limit.")
    ] = 99.5,
    stride: Annotated[int, typer.Option(min=1, help="Keep every n-th frame, as episodes.frame_stride.")] = 1,
    as_json: Json = False,
) -> None:
    """Fit an embodiment profile to real episodes, for a robot without a shipped one.

    Limits are percentiles of recorded velocities, accelerations and jerks. They say what the robot did, not what it can
    do; the profile is marked as fitted.

    \b
    [bold]Examples[/bold]
      roboalign executability fit stores/mine --out mine.yaml
      roboalign executability fit shipped --stride 2 --out sawyer_5hz.yaml
    """
    if out.suffix != ".yaml":
        raise UserError(f"'{out}' does not end in .yaml", where="--out", remedy="name a .yaml file")
    if not out.absolute().parent.is_dir():
        raise UserError("its folder is missing", where=str(out), remedy="make it first")
    from roboalign_ray.config import EpisodesConfig
    from roboalign_ray.episodes.store import open_store
    from roboalign_ray.inverse_dynamics.profile_fit import fit_embodiment

    episodes = EpisodesConfig(store=store, frame_stride=stride)
    profile = fit_embodiment(open_store(store), episodes, name=out.stem, percentile=percentile)
    profile.save(out, f"Fitted to {store}: percentiles of recorded motion, not limits of a data sheet.")
    if as_json:
        show(profile.model_dump(mode="json"), as_json)
    else:
        _print_profile(profile)


@app.command()
def calibrate(
    profile: Profile,
    model: Model = None,
    overrides: Overrides = None,
    out: Out = None,
    groups: Annotated[int, typer.Option(min=1, help="Windows of the train split.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts of each.")] = 4,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure p0, the penalty of the base model's rollouts, and write it to OUT/calibration.json.

    p0 is the median. Set it as reward.executability.p0: the run's settings then hold it.

    \b
    [bold]Examples[/bold]
      roboalign executability calibrate demo --model runs/inverse/inverse_dynamics --out runs/inverse
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.evaluate.executability import run_calibrate

    summary = run_calibrate(_with_model(config, model), folder, groups=groups, samples=samples, quiet=quiet)
    show(summary, as_json)
    if not as_json:
        settings = {"weight": 1, "model": summary["model"], "p0": f"{summary['p0']:.6g}"}
        typer.echo(" ".join(f"--set reward.executability.{key}={value}" for key, value in settings.items()))


@app.command()
def measure(
    profile: Profile,
    model: Model = None,
    world_model: Annotated[
        Path | None,
        typer.Option(
            "--world-model", metavar="DIR", help="Folder of a world model.", show_default="the profile's"
        ),
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    groups: Annotated[int, typer.Option(min=1, help="Held-out windows.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts of each.")] = 2,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure whether held-out rollouts can be executed and do what was commanded, beside the real continuations.

    Share of plausible rollouts (within the robot's limits, moving, readable), violations, penalty, motion and following
    error, each with its 95 % interval over windows. Writes OUT/executability.json.

    \b
    [bold]Examples[/bold]
      roboalign executability measure demo --model runs/inverse/inverse_dynamics
      roboalign executability measure demo --model runs/inverse/inverse_dynamics --world-model runs/demo/aligned
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.evaluate.executability import figures_table, run_measure_executability

    summary = run_measure_executability(
        _with_model(config, model), folder, groups=groups, samples=samples, model=world_model, quiet=quiet
    )
    if as_json:
        show(summary, as_json)
    else:
        typer.echo(figures_table(summary))


def _with_model(config: JobConfig, model: str | None) -> JobConfig:
    """The job with the inverse dynamics model of --model."""
    if model is None:
        return config
    part = config.reward.executability.model_copy(update={"model": model})
    return config.model_copy(update={"reward": config.reward.model_copy(update={"executability": part})})


def _print_profile(profile: Embodiment) -> None:
    """Limits per dimension, then sources."""
    labels = [
        f"{name} [{unit}]" if unit else name for name, unit in zip(profile.names, profile.units, strict=True)
    ]
    low, high = profile.position_range
    columns = [
        Column("velocity", [f"{value:.4g}" for value in profile.velocity]),
        Column("acceleration", [f"{value:.4g}" for value in profile.acceleration]),
        Column("jerk", [f"{value:.4g}" for value in profile.jerk_limit]),
        Column("position", [f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True)]),
        Column("weight", [f"{value:.4g}" for value in profile.weight]),
    ]
    print_columns(Console(markup=False), Column("dimension", labels), columns)
    typer.echo(f"{profile.name}: {', '.join(profile.robots) or 'robot not known'}, dt {profile.dt:.4g} s")
    if profile.fitted:
        typer.echo("fitted to episodes: what the robot did, not what it can do")
    for field, source in profile.sources.items():
        typer.echo(f"  {field}: {source}")
