"""`roboalign spread`: do the rewards of a job's groups differ enough to learn from?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.options import Json, Overrides, Profile, Quiet

if TYPE_CHECKING:
    from roboalign_ray.config import JobConfig, RolloutConfig


def spread(
    profile: Profile,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=A,B,…",
            help="Try each of these values of a setting of rollouts, one at a time. May be repeated.",
        ),
    ] = None,
    groups: Annotated[int, typer.Option("--groups", min=1, help="Prompts.")] = 8,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Samples of each.")] = 8,
    history: Annotated[int, typer.Option("--history", min=0, help="Self-generated frames before.")] = 8,
    frames: Annotated[
        list[int] | None, typer.Option("--frames", min=1, help="Frames of a sample. May be repeated.")
    ] = None,
    require: Annotated[
        bool, typer.Option("--require", help="Exit 2 where the job's own settings stay below 10 %.")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much the rewards of a group's samples differ, by the ways of making them.

    An objective learns from these differences alone: below a relative deviation of 10 % expect little. The first row
    is the job as it stands, the others change one setting. Columns after "deviation" are the reward's components.

    \b
    [bold]Examples[/bold]
      roboalign spread demo
      roboalign spread demo --vary rollout.sampling.temperature=0.5,0.8
      roboalign spread demo --frames 4 --frames 12
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    ways = _ways(config, profile, overrides or (), vary or ())
    from roboalign_ray.pipelines.evaluate.reward_spread import (
        ENOUGH,
        SpreadRequest,
        print_spread,
        run_spread,
        spread_json,
    )

    rows = run_spread(
        config, ways, SpreadRequest(groups, samples, history, tuple(frames or (4,))), quiet=quiet
    )
    if as_json:
        typer.echo(json.dumps(spread_json(rows), indent=2))
    else:
        print_spread(rows)
    if require and not rows[0].enough:
        raise UserError(
            f"the rewards of a group deviate by {rows[0].deviation:.1%}, less than {ENOUGH:.0%}",
            where="rollout",
            remedy="try other ways with --vary",
        )


def _ways(
    config: JobConfig, profile: str, overrides: Sequence[str], vary: Sequence[str]
) -> list[tuple[str, RolloutConfig]]:
    """Name and rollout settings of each row.

    Raises:
        UserError: what is varied is no setting of rollouts.
    """
    found = [("the job's settings", config.rollout)]
    for text in vary:
        key, _, values = text.partition("=")
        if not key.startswith("rollout.") or not values:
            raise UserError(
                f"'{text}' varies no setting of rollouts",
                where="--vary",
                remedy="write for example rollout.sampling.temperature=0.5,0.8",
            )
        for value in values.split(","):
            changed = resolve_job(profile, [*overrides, f"{key}={value}"])
            found.append((f"{key.removeprefix('rollout.')}={value}", changed.rollout))
    return found
