"""`roboalign score`: scores for many clips, and a page to look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.options import Json, Overrides, Quiet, folder_to_write

HELP = """Score many robot clips, each exactly once, on a machine or a cluster.

\b
[bold]Examples[/bold]
  roboalign score videos scores
  roboalign score report scores
"""
DEFAULT = "run"


class _ScoreGroup(TyperGroup):
    """Takes `roboalign score INPUT OUTPUT` for `roboalign score run INPUT OUTPUT`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """See click."""
        named = args and (args[0] in self.commands or args[0] in ("-h", "--help"))
        return super().parse_args(ctx, args if named or not args else [DEFAULT, *args])


app = typer.Typer(cls=_ScoreGroup, no_args_is_help=True, rich_markup_mode="rich", help=HELP)


@app.command(DEFAULT)
def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Videos (folder, file or glob), Parquet, a store, or a LeRobot, RLDS or DROID set; or a URI.",
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Folder of the scores.", parser=folder_to_write)
    ],
    judge: Annotated[
        Literal["student", "teacher", "both"],
        typer.Option(help="both: the student scores all clips, the teacher the most uncertain ones."),
    ] = "student",
    instruction: Annotated[
        str, typer.Option("--instruction", "-i", help="One sentence for all clips, in place of their own.")
    ] = "",
    instruction_column: Annotated[str, typer.Option(help="Column of Parquet rows.")] = "instruction",
    video_column: Annotated[
        str,
        typer.Option(
            help="Column of Parquet rows: videos, or paths beside the file.", show_default="video, path"
        ),
    ] = "",
    view: Annotated[str, typer.Option(help="View of episodes.", show_default="the first one")] = "",
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score clips anew whose score is by another judge or version.")
    ] = False,
    profile: Annotated[
        str, typer.Option("--profile", metavar="PROFILE", help="Profile: a name, or a .yaml file.")
    ] = "demo",
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every clip of INPUT that has no score in OUTPUT yet.

    Videos take their instruction from NAME.json beside them, other inputs from their data. The same command goes on
    after any interruption. A clip that cannot be scored is listed in OUTPUT/quarantine.parquet with the reason, and
    tried again by the next run. With --judge both, scoring.teacher_uncertainty and scoring.teacher_budget say which
    clips the teacher sees, and how many. docs/scoring.md describes the files.

    \b
    [bold]Examples[/bold]
      roboalign score videos scores
      roboalign score 'videos/*.mp4' scores --instruction "open the drawer"
      roboalign score lerobot_set scores --judge both --profile paper_rt1 --set scoring.teacher_budget=500
      roboalign score s3://bucket/clips.parquet scores --video-column clip --set scoring.judge_max=16
    """
    config = resolve_job(profile, overrides or ())
    if instruction and not instruction.strip():
        raise UserError("is empty", where="--instruction", remedy="a video is judged against a sentence")
    from dataclasses import asdict

    from roboalign_ray.pipelines.label.clips import ClipInput
    from roboalign_ray.pipelines.label.score_job import run_scoring

    clips = ClipInput(source, instruction, instruction_column, video_column, view)
    report = run_scoring(config, clips, out, judge=judge, rescore=rescore, quiet=quiet or as_json)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    second = f", {report.second} of them by the teacher" if report.second else ""
    typer.echo(
        f"{out}: {report.scored} scored{second}, {report.known} had a score, {len(report.quarantined)} quarantined"
    )
    typer.echo(report.cost())


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder that 'roboalign score' wrote.")],
    clips: Annotated[
        int, typer.Option(min=1, max=50, help="How many of the best and of the worst clips.")
    ] = 6,
) -> None:
    """Write a page about a folder of scores: histograms, the best and worst clips as videos, reasons of the others.

    \b
    [bold]Examples[/bold]
      roboalign score report scores
    """
    from roboalign_ray.pipelines.label.score_report import write_score_report

    typer.echo(write_score_report(out, clips))
