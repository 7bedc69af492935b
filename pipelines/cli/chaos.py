"""`roboalign chaos`: inject faults into a running job and check its guarantees."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from roboalign_ray.pipelines.cli.options import Json, Out, Overrides, Profile, Quiet, job_and_folder

EXIT_BROKEN = 1


def chaos(
    profile: Profile,
    overrides: Overrides = None,
    out: Out = None,
    faults: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="KIND[:TIMES]",
            help="Inject this kind, this many times. May be repeated.",
            show_default="all kinds",
        ),
    ] = None,
    kills: Annotated[int, typer.Option("--kills", min=1, help="Kills per role.")] = 5,
    minutes: Annotated[
        float,
        typer.Option("--minutes", min=0, help="Inject a random fault every 20 to 60 seconds for this time."),
    ] = 0.0,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes of a cluster on this machine.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the plan and of the choice of targets.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run an alignment job, inject faults into it, and check its guarantees.

    Kills rollout workers, scorers and the learner (also during a checkpoint), hangs workers, corrupts weights and
    rollouts in transit, fills the disk, removes a node and adds one. Then checks the journal, the ledger and the
    checkpoints: no group is lost or trained twice, the bound on staleness holds, and all updates are complete. Writes
    chaos.md and chaos.json into OUT; exits with 1 if a guarantee was violated.

    \b
    [bold]Examples[/bold]
      roboalign chaos chaos
      roboalign chaos chaos --fault learner:5 --fault checkpoint:5
      roboalign chaos chaos --nodes 3 --fault node:2
      roboalign chaos chaos --minutes 30 --out runs/soak
    """
    quiet = quiet or as_json
    config, folder = job_and_folder(profile, overrides, out)
    from roboalign_ray.pipelines.chaos.job import Order, run_chaos
    from roboalign_ray.pipelines.chaos.report import figures, markdown

    order = Order(tuple(faults or ()), kills, minutes, nodes, seed)
    report = run_chaos(config, folder, order, quiet=quiet)
    typer.echo(json.dumps(figures(report), indent=2) if as_json else markdown(report))
    return 0 if report.holds else EXIT_BROKEN
