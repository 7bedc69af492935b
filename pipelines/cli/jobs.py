"""The jobs on the command line: demo, pretrain, align, distill, evaluate. Each loads a profile, runs a pipeline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.options import (
    Json,
    Out,
    Overrides,
    Profile,
    Quiet,
    Resume,
    command_line,
    job_and_folder,
    show,
)


def demo(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A profile's name, or the path of a .yaml file.")
    ] = "demo",
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove an earlier run in OUT first.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align a world model and report what changed: before, alignment, after, one HTML file.

    The report has curves, tables and videos side by side; TensorBoard has the same. With --resume, a run of
    'roboalign align' in OUT gets its report: a complete one is only measured.

    \b
    [bold]Examples[/bold]
      roboalign demo
      roboalign demo mine.yaml --out runs/mine_aligned --resume
      roboalign demo --out runs/longer --set alignment.updates=60
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    if resume and fresh:
        raise UserError("--resume and --fresh exclude each other", where="roboalign demo")
    from roboalign_ray.pipelines.evaluate.demo import run_demo

    command = ["roboalign", *sys.argv[1:]]
    summary = run_demo(config, folder, command=command, resume=resume, fresh=fresh, quiet=quiet)
    if as_json:
        show(summary, as_json)
        return
    for name, row in summary["before_after"].items():
        typer.echo(f"{name:12} {row['before']:9.4f} -> {row['after']:9.4f}  ({row['verdict']})")
    typer.echo(f"{summary['seconds']:.0f} s, report: {summary['report']}")


def pretrain(
    profile: Profile,
    overrides: Overrides = None,
    out: Out = None,
    stage: Annotated[
        Literal["tokenizer", "world_model", "inverse_dynamics"] | None,
        typer.Option(
            "--stage", help="Train only this part.", show_default="all of the world model, in order"
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a world model on an episode store: of kind token its tokenizer first, of kind diffusion in one stage.

    A complete stage in OUT is kept; an interrupted stage resumes. --stage inverse_dynamics trains a model that reads
    actions from video, measures it on held-out episodes, and says whether it may reward.

    \b
    [bold]Examples[/bold]
      roboalign pretrain shipped --out runs/shipped
      roboalign pretrain demo --stage world_model --set episodes.store=stores/mine
      roboalign pretrain demo_diffusion --out runs/diffusion --set episodes.store=runs/two_views
      roboalign pretrain demo --stage inverse_dynamics --out runs/inverse
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.train.world_model import run_pretrain

    summary = run_pretrain(config, folder, stage, quiet=quiet)
    show(summary, as_json)
    if not as_json:
        _print_next(config, profile, overrides, folder, list(summary))


def _print_next(
    config: JobConfig, profile: str, overrides: Sequence[str] | None, folder: Path, stages: Sequence[str]
) -> None:
    """The folders that pre-training wrote, and the command that goes on from them."""
    made = {stage: folder.absolute() / stage for stage in ("tokenizer", "world_model")}
    for stage in stages:
        typer.echo(f"{stage} folder: {made[stage]}")
    if "world_model" not in stages:
        follow = command_line("pretrain", profile, overrides, folder, "--stage", "world_model")
    else:
        weights = {f"{stage}_weights": place for stage, place in made.items() if place.is_dir()}
        sets = [f"{key}={place}" for key, place in weights.items() if Path(getattr(config, key)) != place]
        follow = command_line(
            "align", profile, [*(overrides or ()), *sets], folder.with_name(f"{folder.name}_aligned")
        )
    typer.echo(f"next: {follow}")


def align(
    profile: Profile,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", metavar="RUN", help="Recompute the groups of this run and compare scores."),
    ] = None,
    fork: Annotated[
        Path | None,
        typer.Option(
            "--fork", metavar="CHECKPOINT", help="Begin a new run from this checkpoint, or a RUN's newest."
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups", min=1, help="With --replay: number of groups, in whole calls.", show_default="all"
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints", metavar="URI", help="Copy every checkpoint to this place, e.g. s3://bucket/run."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Align a pre-trained world model by reinforcement learning (GRPO by default).

    Rollout workers sample groups, scorers compute rewards, and the learner updates the weights. Curves and the aligned
    model are written to OUT. On a terminal, a live view shows the state of every role.

    --resume continues a run; settings that affect no result may change. --fork begins a new run with other settings
    from a checkpoint, and continues its update numbers.

    --replay trains nothing: it recomputes a run's groups from its journal and its checkpoints, with the same seeds and
    weights, and compares their scores. It exits with 1 if a score differs.

    \b
    [bold]Examples[/bold]
      roboalign align demo --out runs/first
      roboalign align single_gpu --set alignment.updates=50 --resume
      roboalign align single_gpu --checkpoints s3://bucket/first --resume
      roboalign align demo --fork runs/first --out runs/longer --set alignment.updates=60
      roboalign align demo --replay runs/demo --groups 16
    """
    quiet = quiet or as_json
    if checkpoints:
        overrides = [*(overrides or ()), f"alignment.checkpoints={checkpoints}"]
    config, folder = job_and_folder(profile, overrides, out)
    if replay is not None:
        if resume or out or fork:
            raise UserError(
                "--replay trains nothing",
                where="roboalign align",
                remedy="leave out --resume, --fork and --out",
            )
        return _replay(config, replay, groups, as_json=as_json, quiet=quiet)
    if groups is not None:
        raise UserError("--groups belongs to --replay", where="roboalign align")
    from roboalign_ray.pipelines.align.job import run_align

    result = run_align(config, folder, resume=resume, fork=fork, quiet=quiet)
    show({"model": result.model, "logs": result.logs, **result.counts}, as_json)
    if not as_json:
        again = command_line("demo", profile, overrides, folder, "--resume")
        typer.echo(f"before and after in one HTML file: {again}")
    return 0


def _replay(config: JobConfig, run: Path, groups: int | None, *, as_json: bool, quiet: bool) -> int:
    """Replay a run's groups. Return the exit code."""
    from roboalign_ray.pipelines.align.replay import print_replay, run_replay

    result = run_replay(config, run, groups=groups, quiet=quiet)
    if as_json:
        show({"equal": result.equal, "tolerance": result.tolerance, "rows": result.rows()}, as_json)
    else:
        print_replay(result)
    return 0 if result.equal else 1


def evaluate(
    profile: Profile,
    overrides: Overrides = None,
    out: Out = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of a world model.", show_default="the profile's"),
    ] = None,
    protocol: Annotated[
        Literal["reconstruction", "one_step", "long_horizon"] | None,
        typer.Option("--protocol", help="Run only this protocol.", show_default="all three"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a tokenizer and a world model on held-out windows.

    Reconstruction; one step ahead, also with shuffled actions and compared with copying the last frame; and the long
    horizon with every refresh policy. Writes evaluation.json and evaluation.png into OUT.

    \b
    [bold]Examples[/bold]
      roboalign evaluate demo
      roboalign evaluate demo --model runs/demo/aligned --protocol long_horizon
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.evaluate.job import run_evaluate

    result = run_evaluate(
        config, folder, model=model, protocols=(protocol,) if protocol else None, quiet=quiet
    )
    if as_json:
        show(result, as_json)
        return
    if rows := result.get("long_horizon", {}).get("rows"):
        _print_rows(rows)
    show({**result["headline"], "figures": folder / "evaluation.json"}, as_json)


def distill(
    profile: Profile,
    pairs: Annotated[
        list[Path],
        typer.Option(
            "--pairs", metavar="STORE", help="Judged pairs; may be repeated for labels added later."
        ),
    ],
    overrides: Overrides = None,
    out: Out = None,
    start: Annotated[
        Path | None, typer.Option("--start", metavar="DIR", help="Continue training this student.")
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", metavar="DIR", help="Where versions go.", show_default="OUT/versions"),
    ] = None,
    text_blind: Annotated[
        bool, typer.Option("--text-blind", help="Hide the instructions: a baseline judge for comparison.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil judged pairs into a fast student judge.

    Trains, calibrates on held-out pairs, prints the agreement with the labels beside that of baselines, and publishes a
    version if it passes the reward gate. An interrupted run resumes.

    \b
    [bold]Examples[/bold]
      roboalign distill demo --pairs bench --out runs/student
      roboalign distill demo --pairs bench --pairs labels --start runs/student/assessed --out runs/student2
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.train.student import run_distill

    summary = run_distill(
        config, pairs, folder, start=start, registry=registry, text_blind=text_blind, quiet=quiet
    )
    if as_json:
        show(summary, as_json)
        return
    typer.echo((folder / "agreement.md").read_text(encoding="utf-8"))
    if summary["gate"]:
        typer.echo((folder / "gate.md").read_text(encoding="utf-8"))
    typer.echo(f"version: {summary['version']}")


_COLUMNS = {
    "policy": "policy",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "roi_lpips": "ROI-LPIPS",
    "freeze_rate": "freeze",
    "psnr_last": "PSNR, end",
    "lpips_last": "LPIPS, end",
    "seconds": "s",
    "peak_sequence": "peak",
}


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """One line per refresh policy; "end" is the mean over the last ten frames. The JSON file has all figures."""
    from rich.console import Console

    from roboalign_ray.pipelines.cli.tables import Column, print_columns

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    names, *columns = (
        Column(title, [cell(row.get(name, "")) for row in rows]) for name, title in _COLUMNS.items()
    )
    print_columns(Console(markup=False), names, columns)
