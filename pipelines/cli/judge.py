"""`roboalign judge`: score videos with the student or the VLM teacher; label, train and serve."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.folder_lock import folder_lock
from roboalign_ray.pipelines.cli.options import (
    Json,
    Out,
    Overrides,
    Profile,
    Quiet,
    folder_to_write,
    run_folder,
)
from roboalign_ray.pipelines.cli.tables import Column, print_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roboalign_ray.judge.protocol import Judgement
    from roboalign_ray.pipelines.label.score import ScoredVideos

HELP = """Judges that score robot videos by the rubric: a vision-language model with reasons, and its student.

\b
[bold]Examples[/bold]
  roboalign judge score video.mp4 --instruction "open the drawer"
  roboalign judge score video.mp4 --instruction "open the drawer" --judge teacher
  roboalign judge score a.mp4 b.mp4 -i "press the button" --judge teacher --profile paper_rt1 --set teacher.backend=vllm
  roboalign judge label videos --out labels
  roboalign judge select
  roboalign judge train teacher --pairs bench --out runs/teacher
  roboalign judge serve --judge student
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)

WithProfile = Annotated[
    str,
    typer.Option("--profile", metavar="PROFILE", help="Profile of the teacher: a name, or a .yaml file."),
]

DEFAULT_JUDGE: Literal["student"] = "student"  # the default of all commands that score, so that they agree
WhichJudge = Annotated[
    Literal["student", "teacher"],
    typer.Option("--judge", help="The student, or the profile's teacher."),
]


@app.command()
def score(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    instruction: Annotated[
        str, typer.Option("--instruction", "-i", help="The sentence that the videos are judged against.")
    ],
    judge: WhichJudge = DEFAULT_JUDGE,
    profile: WithProfile = "demo",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Score videos on six dimensions and in total.

    The default judge is the student, as in 'judge serve'. A teacher gives the mean ± standard deviation over several
    answers, and its reasons; a student gives its score ± its uncertainty. The shipped student and small teacher are
    trained on simulated tabletop tasks, and the output says whether a clip is similar to these. Profile paper_rt1 names
    Qwen3-VL-8B-Thinking, the published teacher. If a video cannot be scored, the output gives the reason, and the
    command exits with 1.

    \b
    [bold]Examples[/bold]
      roboalign judge score video.mp4 --instruction "open the drawer"
      roboalign judge score video.mp4 --instruction "open the drawer" --judge teacher
      roboalign judge score *.mp4 -i "push it" --judge teacher --profile paper_rt1 --set teacher.backend=vllm --json
      roboalign judge score a.mp4 -i "push it" --judge teacher --profile paper_rt1 --set teacher.backend=openai
    """
    config = resolve_job(profile, overrides or ())
    _check_settings(judge, overrides)
    if not instruction.strip():
        raise UserError(
            "the instruction is empty", where="--instruction", remedy="a video is judged against a sentence"
        )
    from roboalign_ray.pipelines.label.score import run_score, run_student_score

    run = run_score if judge == "teacher" else run_student_score
    scored = run(config, videos, instruction)
    if as_json:
        rows = [_as_json(path, outcome) for path, outcome in zip(videos, scored.outcomes, strict=True)]
        judge_keys = {"judge": scored.judge, "version": scored.version}
        typer.echo(json.dumps([judge_keys | row for row in rows], indent=2))
    else:
        _print(videos, scored)
    if any(isinstance(outcome, Failed) for outcome in scored.outcomes):
        raise typer.Exit(1)


@app.command()
def label(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS|FOLDER", help="Judged pairs, or videos NAME.mp4 with NAME.json {instruction}."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="The distillation set to add to.", parser=folder_to_write),
    ],
    profile: WithProfile = "demo",
    round_number: Annotated[int, typer.Option("--round", min=1, help="Round of the labels.")] = 1,
    split: Annotated[
        str | None, typer.Option(help="Of PAIRS, only train or held_out.", show_default="all")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Of PAIRS, only this number, spread evenly.", show_default="all")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Label many videos with a pool of teachers, each exactly once. An interrupted run resumes.

    A video that cannot be labelled is tried again, then set aside and listed; it never gets a score. The teacher is the
    profile's: the package's small one, or Qwen3-VL-8B-Thinking with paper_rt1.

    \b
    [bold]Examples[/bold]
      roboalign judge label videos --out labels --profile paper_rt1 --set teacher.backend=vllm
      roboalign judge label bench --split held_out --out labels
    """
    config = resolve_job(profile, overrides or ())
    from dataclasses import asdict

    from roboalign_ray.pipelines.label.job import run_label

    report = run_label(config, source, out, round_number=round_number, split=split, count=count)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(f"{out}: {report.labelled} labelled, {report.known} had a label")
    typer.echo(
        f"failed tries: {report.failed_tries}, failed answers: {report.failed_answers}, "
        f"teachers lost: {report.lost_teachers}"
    )
    for item, reason in report.set_aside.items():
        typer.echo(f"set aside: {item} ({reason})")


@app.command()
def agree(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Folder that 'judge label' wrote.")],
    pairs: Annotated[Path, typer.Option("--with", metavar="PAIRS", help="The pairs that it labelled.")],
    as_json: Json = False,
) -> None:
    """Agreement of a teacher's labels with the pairs' own scores, per dimension.

    Spearman, mean absolute error and pairwise accuracy, with 95 % intervals over groups. Videos set aside are counted.

    \b
    [bold]Examples[/bold]
      roboalign judge agree labels --with bench
    """
    from roboalign_ray.judge.validation.agreement import agreement_table
    from roboalign_ray.pipelines.label.job import run_agree

    found = run_agree(labels, pairs)
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else agreement_table([found]))


@app.command()
def select(
    profile: Profile = "reproduce",
    samples: Annotated[int, typer.Option(min=2, help="Rollouts of every held-out window.")] = 8,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]DIR",
            help="Also measure this world model. Several folders under one NAME count as seeds of one model.",
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder for selection.json and selection.md.", parser=folder_to_write
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How well each judge ranks the rollouts of one prompt: the measured gain when it picks the best one.

    The judges of evaluation.judges, SSIM and LPIPS pick; the pick by measurement is the upper bound. --model also
    measures the rollouts of other world models, for example those aligned with a judge's reward.

    \b
    [bold]Examples[/bold]
      roboalign judge select
      roboalign judge select --set judge.weights=runs/student/assessed
      roboalign judge select --model judged=runs/reproduce/judged-0/aligned --samples 16
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    named = _named(models or ())
    if out is not None and out.exists() and not out.is_dir():
        raise UserError("is a file, not a folder", where=str(out))
    from roboalign_ray.pipelines.evaluate.best_of_n_study import (
        models_table,
        run_select,
        selection_table,
        write_selection,
    )

    with nullcontext() if out is None else folder_lock(out):
        selection = run_select(config, samples=samples, models=named, quiet=quiet)
        if out is not None:
            write_selection(selection, out)
    typer.echo(
        json.dumps(selection, indent=2)
        if as_json
        else f"{selection_table(selection)}\n{models_table(selection)}"
    )


def _named(models: Sequence[str]) -> dict[str, list[Path]]:
    """Folders by name; a folder without a name is its own name."""
    named: dict[str, list[Path]] = {}
    for given in models:
        # A folder's name may contain '='.
        name, _, folder = ("", "", given) if Path(given).is_dir() else given.partition("=")
        folder = folder or name
        if not Path(folder).is_dir():
            raise UserError("no such world model folder", where=folder, remedy="--model takes [NAME=]DIR")
        named.setdefault(name or folder, []).append(Path(folder))
    return named


@app.command()
def train(
    profile: Profile,
    pairs: Annotated[
        list[Path],
        typer.Option(
            "--pairs", metavar="STORE", help="Judged pairs; may be repeated for labels added later."
        ),
    ],
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the teacher by maximum likelihood on judged pairs: a LoRA adapter, or all weights of a small model.

    OUT/teacher then holds the adapter and the merged model, which transformers and vLLM load. An interrupted run
    resumes.

    \b
    [bold]Examples[/bold]
      roboalign judge train teacher --pairs bench --out runs/teacher
      roboalign judge train paper_rt1 --pairs bench --set teacher.training.lora_rank=64
    """
    quiet = quiet or as_json
    config = resolve_job(profile, overrides or ())
    from roboalign_ray.pipelines.train.teacher import run_judge_train

    summary = run_judge_train(config, pairs, run_folder(config, out), quiet=quiet)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        typer.echo(f"{key}: {value:.6g}" if isinstance(value, float) else f"{key}: {value}")


@app.command()
def serve(
    judge: WhichJudge = DEFAULT_JUDGE,
    profile: WithProfile = "demo",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts requests from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8000,
    overrides: Overrides = None,
) -> None:
    """Serve a judge over HTTP until Ctrl-C: a video and an instruction in, six scores as JSON out.

    POST /score takes {"video": "<base64>", "instruction": "..."}, or the file itself with ?instruction=...; GET /health
    returns the judge's name. Bad input gets 400 with one line, a busy service 429, a late answer 503. If
    ROBOALIGN_JUDGE_TOKEN is set, requests must send it as a bearer token. docs/serving.md lists limits and answers.

    \b
    [bold]Examples[/bold]
      roboalign judge serve --judge student --set judge.weights=runs/student/assessed
      roboalign judge serve --judge teacher --profile paper_rt1 --port 8080 --set serving.max_replicas=8
      curl --data-binary @a.mp4 -H 'Content-Type: video/mp4' 'http://127.0.0.1:8000/score?instruction=open+the+drawer'
    """
    config = resolve_job(profile, overrides or ())
    _check_settings(judge, overrides)
    from roboalign_ray.pipelines.serve.judge import run_serve

    run_serve(config, judge, host, port, lambda url: typer.echo(f"{judge} judges at {url}/score"))


def _check_settings(judge: str, overrides: Sequence[str] | None) -> None:
    """Raise UserError if a setting would have no effect on the judge."""
    if judge == "student" and any(override.startswith("teacher.") for override in overrides or ()):
        raise UserError(
            "the student judges, and takes no setting of the teacher",
            where="--set",
            remedy="add: --judge teacher",
        )


def _as_json(path: Path, outcome: Judgement | Failed) -> dict[str, Any]:
    """One video's row; a teacher's row also has its answers."""
    if isinstance(outcome, Failed):
        return {"video": str(path), "failed": outcome.reason, "kind": outcome.kind}
    row = {"video": str(path), **outcome.as_json()}
    if outcome.texts:
        row["answers"] = len(outcome.samples)
        row["failed_answers"] = [failure.reason for failure in outcome.failures]
        row["texts"] = list(outcome.texts)
    return row


def _column(outcome: Judgement | Failed) -> list[str]:
    """Cells of one video: its six scores and its total."""
    from roboalign_ray.judge.rubric import DIMENSIONS

    if isinstance(outcome, Failed):
        return ["-"] * (len(DIMENSIONS) + 1)
    cells = [f"{mean:.2f} ± {std:.2f}" for mean, std in zip(outcome.scores, outcome.std, strict=True)]
    # Each answer of a teacher has a total; a student predicts no uncertainty of the total.
    spread = f" ± {outcome.samples.sum(axis=1).std():.2f}" if len(outcome.samples) else ""
    return [*cells, f"{outcome.total:.2f}{spread}"]


def _print(videos: Sequence[Path], scored: ScoredVideos) -> None:
    from roboalign_ray.judge.rubric import DIMENSIONS

    outcomes = scored.outcomes
    typer.echo(f"judge: {scored.judge}" + ("" if scored.version is None else f", version {scored.version}"))

    # A dimension a row: seven columns of a mean and a spread are wider than most terminals.
    titles = Column(
        "", [*(f"{dimension.title} /{dimension.maximum}" for dimension in DIMENSIONS), "Total /10"]
    )
    columns = [Column(path.name, _column(outcome)) for path, outcome in zip(videos, outcomes, strict=True)]
    print_columns(Console(markup=False), titles, columns)  # file names are text, not markup
    for path, outcome in zip(videos, outcomes, strict=True):
        if isinstance(outcome, Failed):
            typer.echo(f"\n{path.name}: not scored: {outcome.reason}")
            continue
        if outcome.rationale is not None:
            failures = len(outcome.failures)
            lost = f" ({failures} answers could not be read)" if failures else ""
            typer.echo(f"\n{path.name}: {outcome.rationale}{lost}")
    _print_seen(videos, scored)


def _print_seen(videos: Sequence[Path], scored: ScoredVideos) -> None:
    """Print which clips are unlike the judge's training clips."""
    judged = [
        (path.name, outcome.seen)
        for path, outcome in zip(videos, scored.outcomes, strict=True)
        if not isinstance(outcome, Failed)
    ]
    if judged and all(seen is None for _, seen in judged):
        typer.echo(
            "\nnothing is known of the clips that this judge was trained on, so these were not compared with them"
        )
    for name, seen in judged:
        if seen is not None and seen.outside:
            typer.echo(f"\n{name}: outside what this judge was trained on: {'; '.join(seen.outside)}")
