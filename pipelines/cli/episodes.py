"""`roboalign episodes`: make, convert and inspect episode stores."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.secrets import masked

if TYPE_CHECKING:
    from roboalign_ray.config import SimulationConfig
    from roboalign_ray.episodes.store import StoreSummary
    from roboalign_ray.episodes.transforms import Fit

HELP = """Make, convert and inspect episode stores.

A store is a folder of Parquet shards with encoded video, statistics and a card. Jobs read only stores.

\b
[bold]Examples[/bold]
  roboalign episodes convert my_lerobot_set stores/mine --height 64 --width 64
  roboalign episodes convert bridge_rlds stores/bridge --view image_0
  roboalign episodes generate stores/sim --task drawer-open --task push --starts 20
  roboalign episodes inspect stores/mine --out sheet.png
  roboalign episodes declare stores/mine --action-kind 'delta*6,hold'
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

SHOWN_REASONS = 10
NONE_HELD_OUT = (
    "warning: no episode is held out, so nothing can be evaluated or aligned on this store; write it again with a "
    "larger --held-out (and --overwrite), and set episodes.held_out_fraction to the same"
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars (implied by --json).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the store in OUT.")]
ActionKinds = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KINDS",
        help="Kinds of the action's dimensions: x=delta,gripper=hold by name, or delta*6,hold in order. Kinds: "
        "delta, delta_angle, delta_rotation, absolute, angle, velocity, hold, toggle, event (docs/actions.md).",
        show_default="from names and data; an error if they leave it open",
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the store to write.")]


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of recorded episodes.")],
    out: Out,
    format: Annotated[
        str,
        typer.Option(
            help="lerobot (v2.x, v3.0), rlds or droid; auto detects it from the files. Or your own source: its "
            "registered name, or my_pkg.sources:Mine."
        ),
    ] = "auto",
    view: Annotated[
        list[str] | None,
        typer.Option(help="Keep this camera view only. May be repeated.", show_default="all"),
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Picture height in pixels.", show_default="source's")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Picture width in pixels; height or width alone keeps the aspect.")
    ] = None,
    fit: Annotated[
        str,
        typer.Option(help="If the aspect changes: stretch (keeps all), crop (centre) or pad (black bars)."),
    ] = "stretch",
    stride: Annotated[
        int,
        typer.Option(
            help="Keep every n-th frame. No motion in between is lost: increments are added, rates are averaged."
        ),
    ] = 1,
    fps: Annotated[
        float | None,
        typer.Option(help="Instead of --stride: the wanted rate, an integer fraction of the source's."),
    ] = None,
    action_kind: ActionKinds = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many usable episodes.")] = None,
    source_fps: Annotated[
        float | None, typer.Option(help="Frame rate of an RLDS dataset whose name is unknown.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of episode groups held out; action statistics exclude them.")
    ] = 0.1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert LeRobot, RLDS or DROID episodes into a store.

    An episode that cannot be used (corrupt video, missing file, frames that do not match the states, NaN) is
    quarantined with its reason; the other episodes are converted. The reasons are listed at the end and in
    OUT/quarantine.json.

    \b
    Examples
      roboalign episodes convert my_lerobot_set stores/mine
      roboalign episodes convert droid stores/droid --height 96 --view exterior_1 --view wrist
      roboalign episodes convert g1 stores/g1 --fps 10 --height 64 --width 64 --fit crop
      roboalign episodes convert arm stores/arm --stride 3 --action-kind 'joint_*=absolute,gripper=hold'
      roboalign episodes convert logs stores/logs --format my_pkg.sources:Mine
    """
    quiet = quiet or as_json
    from roboalign_ray.pipelines.episodes.convert import ConvertOptions
    from roboalign_ray.pipelines.episodes.convert import convert as run

    options = ConvertOptions(
        format=format,
        views=tuple(view or ()),
        height=height,
        width=width,
        fit=cast("Fit", fit),  # checked with all other options
        stride=stride,
        fps=fps,
        limit=limit,
        action_kind=",".join(action_kind or ()),
        source_fps=source_fps,
        held_out_fraction=held_out,
        overwrite=overwrite,
    )
    summary = run(source, out, options, command=_command_line(), console=Console(stderr=True, quiet=quiet))
    _report(summary, as_json)


@app.command()
def generate(
    out: Out,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Meta-World task, such as drawer-open. May be repeated.", show_default="built-in list"
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Action variant replayed from every start. May be repeated.", show_default="expert, noisy"
        ),
    ] = None,
    starts: Annotated[int | None, typer.Option(help="Start states per task.", show_default="20")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames per episode.", show_default="40")] = None,
    height: Annotated[int | None, typer.Option(help="Picture height in pixels.", show_default="64")] = None,
    width: Annotated[int | None, typer.Option(help="Picture width in pixels.", show_default="64")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed; start states are functions of task, seed and number.", show_default="0"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Simulator processes.", show_default="one per core")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting of the simulation. May be repeated."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Start from the simulation section of this profile.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of start states held out.")] = 0.1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Simulate Meta-World episodes with scripted experts and counterfactual variants, and store them.

    Needs the extra 'simulation' and OpenGL. Start states are functions of task, seed and number: a larger run contains
    a smaller one.

    \b
    Examples
      roboalign episodes generate stores/sim
      roboalign episodes generate stores/two --task drawer-open --task push --starts 5
      roboalign episodes generate stores/far --set camera_distance=1.4 --set tasks=push,reach
    """
    quiet = quiet or as_json
    given = {
        "tasks": task,
        "variants": variant,
        "starts_per_task": starts,
        "frames": frames,
        "height": height,
        "width": width,
        "seed": seed,
        "workers": workers,
    }
    config = simulation_config(
        {key: value for key, value in given.items() if value is not None}, override or (), profile
    )
    if out.exists() and not overwrite:  # checked before processes start
        from roboalign_ray.foundation.storage.shards import already_exists

        raise already_exists(out)
    from roboalign_ray.pipelines.episodes.generate import generate as run

    summary = run(config, out, held_out_fraction=held_out, overwrite=overwrite, show_progress=not quiet)
    _report(summary, as_json)


def simulation_config(
    options: Mapping[str, Any], overrides: Iterable[str] = (), profile: str | None = None
) -> SimulationConfig:
    """Defaults or a profile's section, then the options, then the overrides "key=value".

    Raises:
        UserError: unknown key (the nearest one is named), or a value that does not fit.
    """
    from pydantic import ValidationError

    from roboalign_ray.config import SimulationConfig
    from roboalign_ray.config.loading import parse_override, resolve_job

    values = {} if profile is None else resolve_job(profile).simulation.model_dump()
    values.update(options)
    for text in overrides:
        key, value = parse_override(text)
        key = key.removeprefix("simulation.")
        field = SimulationConfig.model_fields.get(key)
        if field is not None and str(field.annotation).startswith("tuple") and not isinstance(value, list):
            value = [part.strip() for part in str(value).split(",") if part.strip()]  # tasks=push,reach
        values[key] = value
    try:
        return SimulationConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{first['msg']} (got {first['input']!r})", where=f"simulation.{key}") from None


@app.command()
def declare(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store's folder.")],
    action_kind: ActionKinds = None,
    action_bounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOUNDS",
            help="Minimum and maximum of a dimension: x=-0.05:0.05,gripper=0:1. May be repeated.",
            show_default="the bounds in the store",
        ),
    ] = None,
    dims: Annotated[
        int | None,
        typer.Option(help="Number of dimensions of the actions, if the store holds several."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Declare the actions of an existing store, so that jobs may skip frames and compare the store with models.

    Without --action-kind, names and data determine the kinds. The result is written to the store as its action card
    (docs/actions.md).

    \b
    Examples
      roboalign episodes declare stores/mine
      roboalign episodes declare stores/mine --action-kind 'delta*6,hold'
      roboalign episodes declare stores/mine --action-kind 'joint_*=absolute,gripper=hold'
      roboalign episodes declare stores/mine --action-bounds 'delta_*=-0.05:0.05,gripper=0:1'
    """
    from roboalign_ray.episodes.declaration import declare_store
    from roboalign_ray.episodes.store import open_store

    findings = declare_store(
        open_store(store), ",".join(action_kind or ()), dims, bounds=",".join(action_bounds or ())
    )
    if as_json:
        pairs = zip(findings.names, findings.kinds, findings.reasons, strict=True)
        found = [{"name": name, "kind": kind, "reason": reason} for name, kind, reason in pairs]
        typer.echo(json.dumps({"store": store, "actions": found}, indent=2, ensure_ascii=False))
        return
    for line in findings.lines():
        Console().print(f"actions: {line}", markup=False, soft_wrap=True)


@app.command()
def inspect(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A store's folder, or 'shipped'.")
    ] = "shipped",
    out: Annotated[
        Path | None, typer.Option(help="Write a contact sheet (PNG) here.", show_default="none is written")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Episodes on the sheet, spread over the store.")] = 4,
    columns: Annotated[int, typer.Option(help="Pictures per row.")] = 12,
    episode: Annotated[
        list[str] | None, typer.Option(help="Show this episode id instead. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print figures of a store, and write a contact sheet: pictures and traces on one time axis.

    On the sheet, time runs from left to right. Below the pictures are the actions (the gripper is the black line), the
    state, and the changes of pictures and state, which rise and fall together if pictures and state are in sync.

    \b
    Examples
      roboalign episodes inspect stores/droid
      roboalign episodes inspect stores/droid --out sheet.png --episodes 6
      roboalign episodes inspect shipped --json
    """
    from roboalign_ray.episodes.inspect import contact_sheet, spread, store_figures
    from roboalign_ray.episodes.store import open_store

    for name, value in (("--episodes", episodes), ("--columns", columns)):
        if value < 1:
            raise UserError(f"{name} is {value}", where="inspect", remedy="give 1 or more")
    if out is not None and out.suffix.lower() != ".png":
        raise UserError("a contact sheet is a PNG", where=str(out), remedy="give a name that ends in .png")
    opened = open_store(store)
    figures = store_figures(opened)
    if out is not None:
        wanted = episode or spread(len(opened), episodes)
        figures["sheet"] = str(contact_sheet([opened.read(which) for which in wanted], out, columns=columns))
    if as_json:
        typer.echo(json.dumps(figures, indent=2, ensure_ascii=False))
        return
    console = Console(markup=False)  # names in data are text, not markup
    for table in figure_tables(figures):
        console.print(table)
    _print_quarantined(console, figures["quarantined"], Path(figures["store"]))
    if out is not None:
        console.print(f"contact sheet: {figures['sheet']}", markup=False, soft_wrap=True)


def figure_tables(figures: Mapping[str, Any]) -> Iterable[Table]:
    """The figures of `store_figures` as tables for the terminal."""
    length = figures["length"]
    facts = Table(title=figures["store"], show_header=False, title_style="bold")
    facts.add_row("episodes", f"{figures['episodes']}  ({_counts(figures['splits'])})")
    facts.add_row("quarantined", str(len(figures["quarantined"])))
    facts.add_row("frames", f"{figures['frames']}  ({length['min']} to {length['max']} an episode)")
    facts.add_row("hours", f"{figures['hours']:.3f}")
    facts.add_row("rate (Hz: episodes)", _counts(figures["fps"]))
    facts.add_row("views (episodes)", _counts(figures["views"]))
    facts.add_row("robot (episodes)", _counts(figures["embodiments"]))
    facts.add_row("success (episodes)", _counts(figures["success"]))
    facts.add_row("different instructions", str(figures["instructions"]))
    yield facts
    for actions in figures["actions"].values():
        yield _action_table(actions)


def _action_table(actions: Mapping[str, Any]) -> Table:
    """An action card with its figures, one row per dimension."""
    from roboalign_ray.episodes.action_card import ActionCard

    card = ActionCard.from_json(actions["card"], "action card")
    table = Table(
        title=f"actions of {card.dims} dimensions, {actions['frames']} frames of the train split",
        caption=f"{card.timing()}; {', '.join(card.embodiments) or 'robot not known'}; card {card.hash}",
    )
    shown = ("p01", "p99", "mean", "std")
    bounded = ("bounds",) if any(card.bounds) else ()  # one column less on a narrow terminal
    for column in ("dimension", "kind", *bounded, *shown):
        table.add_column(column, justify="right" if column in shown else "left")
    for dim, (label, kind, pair) in enumerate(zip(card.labels, card.kinds, card.bounds, strict=True)):
        limits = ["not known" if pair is None else f"{pair[0]:.4g} to {pair[1]:.4g}"] if bounded else []
        figures = (f"{getattr(card.statistics, name)[dim]:.4g}" for name in shown if card.statistics)
        table.add_row(label, kind, *limits, *figures)
    return table


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


def _report(summary: StoreSummary, as_json: bool) -> None:
    quarantined = [{"episode_id": item.episode_id, "reason": item.reason} for item in summary.quarantined]
    if as_json:
        figures = {"store": str(summary.path), "episodes": summary.episodes, "frames": summary.frames}
        figures |= {"held_out": summary.held_out, "bytes": summary.bytes}
        figures |= {"quarantined": quarantined, "notes": list(summary.notes)}
        typer.echo(json.dumps(figures, indent=2))
        return
    console = Console(markup=False)  # names in data are text, not markup
    count = f"{summary.episodes} episode" + "s" * (summary.episodes != 1)
    console.print(
        f"{summary.path}: {count}, {summary.frames} frames, {summary.bytes / 1e6:.1f} MB, "
        f"{summary.held_out} held out, {len(quarantined)} quarantined",
        markup=False,
        soft_wrap=True,
    )
    if not summary.held_out:
        console.print(NONE_HELD_OUT, markup=False, soft_wrap=True)
    for note in summary.notes:
        console.print(note, markup=False, soft_wrap=True)
    _print_quarantined(console, quarantined, summary.path)


def _print_quarantined(console: Console, items: list[dict[str, str]], store: Path) -> None:
    if not items:
        return
    table = Table(title=f"{len(items)} quarantined", title_style="bold yellow")
    table.add_column("episode")
    table.add_column("reason", overflow="fold")
    for item in items[:SHOWN_REASONS]:
        table.add_row(item["episode_id"], item["reason"])
    console.print(table)
    if len(items) > SHOWN_REASONS:
        rest = len(items) - SHOWN_REASONS
        console.print(
            f"and {rest} more; all are listed in {store / 'quarantine.json'}", markup=False, soft_wrap=True
        )


def _command_line() -> str:
    """The command as it was typed, for the dataset card."""
    return masked(shlex.join(["roboalign", *sys.argv[1:]]))
