"""`roboalign bench`: build RobotWorldBench, label it by hand, and compare methods on it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.secrets import masked
from roboalign_ray.pipelines.cli.options import Json, Overrides, Quiet, folder_to_write

if TYPE_CHECKING:
    from roboalign_ray.config import JobConfig

HELP = """Robot videos with six scores each: generate them, label them, and compare methods on them.

\b
[bold]Examples[/bold]
  roboalign bench build demo --pairs 10000 --out bench
  roboalign bench annotate bench --out to_judge --count 50
  roboalign bench table bench
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

PairsPath = Annotated[Path, typer.Argument(metavar="PAIRS", help="A folder of judged pairs.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the judged pairs in OUT.")]


@app.command()
def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PROFILE|STORE", help="A profile, or an episode store (used with demo's settings)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="OUT", help="Folder to write the judged pairs to.", parser=folder_to_write
        ),
    ],
    pairs: Annotated[int | None, typer.Option(help="Pairs in all.", show_default="the profile's")] = None,
    rollouts: Annotated[
        bool, typer.Option("--rollouts/--no-rollouts", help="Also add rollouts of the world model.")
    ] = True,
    generated: Annotated[
        list[Path] | None,
        typer.Option(help="Add the videos of this folder, each with its JSON file. May be repeated."),
    ] = None,
    sheets: Annotated[
        bool,
        typer.Option("--sheets/--no-sheets", help="Write a contact sheet per degradation to OUT/sheets."),
    ] = True,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make labelled videos: real, degraded by rule, simulated counterfactuals, and rollouts.

    Simulator labels score real clips and counterfactuals; rule and strength score degraded clips; measurement against
    the real continuation scores rollouts. The set is balanced over kinds and score levels; all pairs of a start state
    are in the same split. A folder of generated videos holds NAME.mp4 and NAME.json with episode_id, start and method.

    \b
    Examples
      roboalign bench build demo --pairs 10000 --out bench
      roboalign bench build stores/mine --no-rollouts --out bench
      roboalign bench build demo --generated videos/other_model --set bench.temperatures=[0.7,1.0] --out bench
    """
    quiet = quiet or as_json
    config = bench_job(source, overrides or (), pairs)
    from roboalign_ray.pipelines.label.build_bench import bench_source, build_bench, write_degradation_sheets

    summary, report = build_bench(
        config,
        out,
        rollouts=rollouts,
        generated=tuple(generated or ()),
        overwrite=overwrite,
        command=masked(shlex.join(["roboalign", *sys.argv[1:]])),
        quiet=quiet,
    )
    written = (
        write_degradation_sheets(bench_source(config, rollouts=rollouts), out / "sheets") if sheets else []
    )
    if as_json:
        figures = {"pairs": summary.pairs, "bytes": summary.bytes, "missing": dict(report.missing)}
        result = {"store": str(out), **figures, "set_aside": dict(report.set_aside), "sheets": len(written)}
        typer.echo(json.dumps(result | {"statistics": dict(summary.statistics)}, indent=2))
        return
    typer.echo(f"{out}: {summary.pairs} pairs, {summary.bytes / 1e6:.1f} MB, {len(written)} contact sheets")
    for name, count in summary.statistics["kinds"].items():
        typer.echo(f"  {count:>6} {name}")
    for family, count in report.missing.items():
        typer.echo(f"missing: {count} of {report.wanted[family]} {family}")
    for reason, count in report.set_aside.most_common():
        typer.echo(f"set aside: {count} ({reason})")


def bench_job(source: str, overrides: list[str] | tuple[str, ...], pairs: int | None) -> JobConfig:
    """The job of a profile, or the demo's job on an episode store.

    Raises:
        UserError: it is neither a profile nor a store, or an override does not fit.
    """
    from roboalign_ray.config.loading import resolve_job

    given = list(overrides)
    if pairs is not None:
        given.append(f"bench.pairs={pairs}")
    if (Path(source) / "statistics.json").is_file():
        return resolve_job("demo", [f"episodes.store={source}", *given])
    return resolve_job(source, given)


@app.command()
def annotate(
    store: PairsPath,
    out: Annotated[
        Path, typer.Option("--out", metavar="OUT", help="Folder to write to.", parser=folder_to_write)
    ],
    count: Annotated[int, typer.Option(help="Number of videos on the page, spread over the kinds.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the choice and the order.")] = 0,
    table: Annotated[
        Path | None, typer.Option("--import", metavar="CSV", help="Read this filled-in table instead.")
    ] = None,
    annotator: Annotated[str, typer.Option(help="With --import: name of the person who scored.")] = "person",
    overwrite: Overwrite = False,
) -> None:
    """Write a page of videos for people to score, or import their table.

    OUT then holds index.html (videos, rubric, fields, a save button) and scores.csv (the same table, empty). With
    --import, OUT becomes a store of the scored pairs with these scores.

    \b
    Examples
      roboalign bench annotate bench --out to_judge --count 50
      roboalign bench annotate bench --import to_judge/scores.csv --annotator anna --out bench_anna
    """
    from roboalign_ray.foundation.storage.shards import StoreCard
    from roboalign_ray.judge.bench.annotate import annotated, choose, read_table, write_sheet
    from roboalign_ray.judge.data.pairs import open_pairs, write_pairs

    if count < 1:
        raise UserError(f"count is {count}", where="--count", remedy="give 1 or more")
    opened = open_pairs(store)
    if table is None:
        write_sheet(opened, choose(opened, count, seed), out)
        typer.echo(f"{out / 'index.html'}: {min(count, len(opened))} videos to judge")
        return
    scores = read_table(table, opened.ids)
    card = StoreCard("Pairs judged by people", f"Scored by {annotator}.")
    fraction = float(opened.statistics["held_out_fraction"])
    summary = write_pairs(
        annotated(opened, scores, annotator), out, card=card, held_out_fraction=fraction, overwrite=overwrite
    )
    typer.echo(f"{out}: {summary.pairs} pairs scored by {annotator}")


@app.command()
def table(
    stores: Annotated[list[Path], typer.Argument(metavar="PAIRS...", help="Folders of judged pairs.")],
    split: Annotated[
        str | None, typer.Option(help="Only the train pairs, or only the held_out pairs.", show_default="all")
    ] = None,
    as_json: Json = False,
) -> None:
    """Mean ± standard deviation per dimension and in total, one line per method.

    \b
    Examples
      roboalign bench table bench
      roboalign bench table bench_before bench_after --split held_out --json
    """
    from roboalign_ray.judge.bench.table import method_table, table_cells
    from roboalign_ray.judge.data.pairs import open_pairs

    rows = method_table({str(path): open_pairs(path) for path in stores}, split)
    if as_json:
        typer.echo(json.dumps([row.as_json() for row in rows], indent=2))
        return
    header, *lines = table_cells(rows)
    shown = Table(box=None, pad_edge=False)
    for title in header:
        left = title == "method"
        shown.add_column(title.replace("_", " "), justify="left" if left else "right", no_wrap=left)
    for line in lines:
        shown.add_row(*line)
    Console(markup=False).print(shown)  # folder names are text, not markup
