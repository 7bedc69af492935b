"""`roboalign simulate`: predict the speed of an asynchronous loop without running it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.options import Json, Overrides, Profile

if TYPE_CHECKING:
    from roboalign_ray.pipelines.capacity.simulation import SimulationResult

_WIDTH = 110  # characters of the table


def simulate(
    profile: Profile,
    overrides: Overrides = None,
    updates: Annotated[int, typer.Option("--updates", min=2, help="Updates to simulate.")] = 20,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="KEY=A,B,…", help="One row for each of these values of a key."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict throughput and idle time of a job's roles from the durations of their work.

    A discrete-event model with the job's own staleness ledger, buffer and back-pressure. Workers come from
    cluster.<role>, groups per update from alignment, speeds and failures from asynchrony.workload.

    \b
    [bold]Examples[/bold]
      roboalign simulate demo --set asynchrony.staleness=2
      roboalign simulate demo --sweep asynchrony.staleness=0,1,2,4
      roboalign simulate node_8gpu --sweep cluster.rollout.workers=4,8,16 --json
    """
    from roboalign_ray.pipelines.capacity.simulation import simulate as run

    rows = []
    for label, more in _rows(sweep):
        rows.append((label, run(resolve_job(profile, [*(overrides or ()), *more]), updates)))
    if as_json:
        found = [{"case": label, **result.as_json()} for label, result in rows]
        typer.echo(json.dumps(found if sweep else found[0], indent=2))
    else:
        _print(rows, sweep.partition("=")[0] if sweep else "")


def _rows(sweep: str | None) -> list[tuple[str, list[str]]]:
    """Label and overrides of each case."""
    if sweep is None:
        return [("", [])]
    key, equals, values = sweep.partition("=")
    if not (key and equals and all(value.strip() for value in values.split(","))):
        raise UserError(
            f"'{sweep}' is no key with values",
            where="--sweep",
            remedy="write for example asynchrony.staleness=0,1,2",
        )
    return [(value.strip(), [f"{key}={value.strip()}"]) for value in values.split(",")]


def _print(rows: Sequence[tuple[str, SimulationResult]], key: str) -> None:
    """One line per case; the JSON form has all figures."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(
        [
            key,
            "groups/s",
            "of ideal",
            "s/update",
            "rollout",
            "scorer",
            "learner",
            "staleness",
            "dropped",
            "limit",
        ]
    ):
        table.add_column(title, justify="left" if number in (0, 9) else "right", no_wrap=True)
    for label, result in rows:
        busy = (f"{result.utilisation[role]:.0%}" for role in ("rollout", "scorer", "learner"))
        table.add_row(
            label,
            f"{result.groups_per_second:.4g}",
            f"{result.groups_per_second / result.ideal_groups_per_second:.0%}",
            f"{result.seconds_per_update:.4g}",
            *busy,
            f"{result.mean_staleness:.2f}",
            f"{result.counts.get('dropped', 0)}",
            result.bottleneck,
        )
    console = Console()
    console.width = max(
        console.width, _WIDTH
    )  # a line that is too long for the terminal is easier to read than truncated columns
    console.print(table)
