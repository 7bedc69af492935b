"""Packs runs into the folders that ship inside the package: weights with a card, and some judged pairs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from roboalign_ray.config import JobConfig, JudgeConfig, TeacherConfig
from roboalign_ray.config.paths import SHIPPED_WORLD_MODELS
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.foundation.storage.shards import StoreCard
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.data.pairs import ROW_SCHEMA, open_pairs, write_pairs
from roboalign_ray.judge.student.model import WEIGHTS, Student
from roboalign_ray.judge.student.training_range import LEAST_PAIRS, TrainingRange, fit_training_range
from roboalign_ray.judge.validation.agreement import agreement_table
from roboalign_ray.judge.validation.assessment import REAL, gate_positions, try_student
from roboalign_ray.pipelines.label.job import run_agree
from roboalign_ray.pipelines.train.stages import StageName
from roboalign_ray.pipelines.train.student import ASSESSED
from roboalign_ray.pipelines.train.teacher import TEACHER
from roboalign_ray.pipelines.train.teacher_engine import MERGED
from roboalign_ray.pipelines.train.train_job import SUMMARY
from roboalign_ray.world_model.registry import read_description

STUDENT, PAIRS = "student", "pairs"


@dataclass(frozen=True)
class Part:
    """A model that ships.

    Attributes:
        folder: its name among the shipped folders.
        title: of its card.
        dtype: torch's name of the type that its weights are stored in.
        recipe: the commands that made it.
    """

    folder: str
    title: str
    dtype: str
    recipe: str


_TOKEN_RECIPE = "`roboalign episodes generate`, `roboalign pretrain shipped`, `roboalign assets pack`"
_PARTS: Mapping[str, Mapping[StageName, Part]] = {
    "token": {
        "tokenizer": Part("tokenizer", "Dual-branch FSQ tokenizer", "bfloat16", _TOKEN_RECIPE),
        "world_model": Part("world_model", "Token world model, pre-trained", "bfloat16", _TOKEN_RECIPE),
    },
    "diffusion": {
        # Finer than bfloat16; a denoiser's weights stay far below the largest number of float16.
        "world_model": Part(
            SHIPPED_WORLD_MODELS["shipped_diffusion"],
            "Diffusion world model of two camera views, pre-trained",
            "float16",
            "`roboalign episodes generate runs/two_views --profile demo_diffusion`, `roboalign pretrain demo_diffusion "
            "--out runs/diffusion --set episodes.store=runs/two_views`, `roboalign assets pack runs/diffusion`",
        ),
    },
}


def pack(run: Path, target: Path, evaluation: Path | None = None) -> dict[str, int]:
    """Copy the models of `run` to where they ship, weights in half precision: a tokenizer and a token world model into
    `target/tokenizer` and `target/world_model`, or a diffusion world model into `target/diffusion`.

    Args:
        run: output folder of `run_pretrain`.
        target: folder for the models.
        evaluation: `evaluation.json` of `roboalign evaluate` on these weights, for the cards' figures.

    Returns:
        bytes per model.

    Raises:
        UserError: a stage is not complete, its model is of a kind that does not ship, a weight is too large for half
            precision, or the evaluation cannot be read; the target is then not changed.
    """
    kind = read_description(run / "world_model").kind
    if (parts := _PARTS.get(kind)) is None:
        raise UserError(f"a world model of kind '{kind}' does not ship", where=str(run))
    for stage in parts:
        if not (run / stage / SUMMARY).is_file():
            raise UserError(
                f"stage '{stage}' is not complete", where=str(run), remedy="run 'roboalign pretrain'"
            )
    figures = _read_figures(evaluation)
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target, prefix=".packing-") as made:
        sizes = {
            part.folder: _packed(run / stage, Path(made) / part.folder, part, figures)
            for stage, part in parts.items()
        }
        _replace(Path(made), target, list(sizes))
    return sizes


def _packed(model: Path, folder: Path, part: Part, figures: Mapping[str, Any]) -> int:
    """Copy one model, with a card; its bytes."""
    shutil.copytree(model, folder)
    for weights in folder.glob("*.safetensors"):
        _halve(weights, part.dtype)
    summary = read_object(folder / SUMMARY, "training summary")
    (folder / "README.md").write_text(_card(part, summary, figures), encoding="utf-8")
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _replace(made: Path, target: Path, names: Sequence[str]) -> None:
    """Put complete folders in the place of those that stand in `target`."""
    for name in names:
        shutil.rmtree(target / name, ignore_errors=True)
        (made / name).rename(target / name)


def pack_judge(run: Path, pairs: Path, target: Path, config: JobConfig, count: int) -> dict[str, int]:
    """Copy a distilled student into `target/student` and part of its bench into `target/pairs`; both or neither.

    Args:
        run: output folder of `run_distill`.
        pairs: the store that it was distilled on.
        target: folder for both.
        config: its judge section is used for the gate.
        count: number of pairs to copy.

    Returns:
        bytes of each.

    Raises:
        UserError: the run is not complete, or the packed student does not pass the reward gate; the target is then not
            changed.
    """
    if not (run / ASSESSED / WEIGHTS).is_file():
        raise UserError("no assessed student here", where=str(run), remedy="run 'roboalign distill'")
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target, prefix=".packing-") as made:
        sizes = _pack_judge(run, pairs, Path(made), config, count)
        _replace(Path(made), target, (STUDENT, PAIRS))
    return sizes


def pack_teacher(run: Path, labels: Path, pairs: Path, target: Path) -> dict[str, int]:
    """Copy a trained teacher into `target/teacher`, with the agreement of its labels on its card.

    Args:
        run: output folder of `run_judge_train`.
        labels: its labels of held-out pairs, from `run_label`.
        pairs: the store of those pairs.
        target: folder that receives it.

    Returns:
        its bytes.

    Raises:
        UserError: the run is not complete, or the labels cannot be compared with the pairs; the target is then not
            changed.
    """
    trained = run / TEACHER / MERGED
    if not (trained / "config.json").is_file():
        raise UserError("no trained teacher here", where=str(run), remedy="run 'roboalign judge train'")
    agreement = agreement_table([run_agree(labels, pairs)]).strip()
    card = [
        "# Teacher judge",
        "",
        *_TEACHER_CARD,
        "",
        "## Agreement with held-out pairs' scores",
        "",
        agreement,
    ]
    with complete_or_absent(target / TEACHER) as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        (folder / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")
        fraction = TeacherConfig().training.held_out_fraction
        if training_range := fit_training_range(LabelledPairs([pairs]), fraction):
            training_range.save(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
    return {TEACHER: size}


def write_training_range(folder: Path, pairs: LabelledPairs, held_out_fraction: float) -> TrainingRange:
    """Write the range of a judge's training clips into its folder.

    Args:
        folder: folder of its weights.
        pairs: its training pairs, with the held-out pairs of the same store.
        held_out_fraction: the share that divides them, as in training.

    Raises:
        UserError: there is no such folder, or there are too few pairs.
    """
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder), remedy="give a folder with a judge's weights")
    found = fit_training_range(pairs, held_out_fraction)
    if found is None:
        raise UserError(
            "too few pairs in one of the splits to determine the range of the judge's training clips",
            where=", ".join(map(str, pairs.paths)),
            remedy=f"give at least {LEAST_PAIRS} in either",
        )
    found.save(folder)
    return found


def _pack_judge(run: Path, pairs: Path, target: Path, config: JobConfig, count: int) -> dict[str, int]:
    student, replay = target / STUDENT, target / PAIRS
    shutil.copytree(run / ASSESSED, student)
    bench = LabelledPairs([pairs])
    kept = replayed_positions(bench, config.judge, count)
    summary = f"Of a bench of {len(bench)} pairs, for relabelling to mix with and for the reward gate to try judges on."
    card = StoreCard("Judged pairs of the shipped student", summary)
    # The encoded videos are copied: encoding a lossy video again would change the frames.
    written = write_pairs(open_pairs(pairs).cells(kept, ROW_SCHEMA.names), replay, card=card)
    gate = try_student(Student.load(student), config.judge, LabelledPairs([replay]))
    gate.assert_open()
    tables = {"Agreement on held-out pairs": "agreement.md", "The reward gate, as distilled": "gate.md"}
    card_lines = ["# Student judge", "", *_STUDENT_CARD]
    for title, file in tables.items():
        card_lines += ["", f"## {title}", "", (run / file).read_text(encoding="utf-8").strip()]
    card_lines += ["", "## The reward gate, as packed", "", gate.table().strip()]
    (student / "README.md").write_text("\n".join(card_lines) + "\n", encoding="utf-8")
    fraction = config.judge.distillation.held_out_fraction
    if training_range := fit_training_range(LabelledPairs([replay]), fraction):
        training_range.save(student)
    sizes = sum(file.stat().st_size for file in student.iterdir())
    return {"student": sizes, "pairs": written.bytes}


def replayed_positions(pairs: LabelledPairs, judge: JudgeConfig, count: int) -> list[int]:
    """Positions of `count` evenly spaced pairs, half of them held out.

    Of the held-out real clips, only those that the gate uses are taken, so that it uses the same clips there.
    """
    held_out, train = (
        pairs.split(name, judge.distillation.held_out_fraction) for name in ("held_out", "train")
    )
    needed = [n for both in gate_positions(pairs, held_out, judge.gate) for n in both if n is not None]
    first = np.array(list(dict.fromkeys(needed)), int)[: count // 2]
    others = np.array([n for n in held_out if n not in needed and pairs.kinds[n] != REAL], int)
    rest = [_evenly(others, count // 2 - len(first)), _evenly(train, count - count // 2)]
    return sorted(int(n) for n in np.concatenate([first, *rest]))


def _evenly(positions: np.ndarray, count: int) -> np.ndarray:
    """At most `count` positions, evenly spaced."""
    if not count or not len(positions):
        return positions[:0]
    return positions[np.unique(np.linspace(0, len(positions) - 1, count).round().astype(int))]


def _read_figures(evaluation: Path | None) -> dict[str, Any]:
    if evaluation is None:
        return {}
    return read_object(evaluation, "evaluation").get("headline", {})


def _halve(weights: Path, dtype: str) -> None:
    """Cast floating-point tensors to a shorter type in place; they are loaded into float32 models.

    Raises:
        UserError: a weight is not finite in this type.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(weights, framework="pt") as reader:
        metadata = reader.metadata()
    state = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in load_file(weights).items()
    }
    if wrong := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise UserError(f"weight '{wrong}' has values that {dtype} cannot hold", where=str(weights))
    save_file(state, weights, metadata=metadata)


_STUDENT_CARD = (
    "A small student judge that ships with roboalign_ray: six scores of a robot video and an instruction.",
    "Data: the train split of a bench of simulated episodes, their degradations, counterfactuals and rollouts of the",
    "shipped world model. Recipe: `roboalign episodes generate`, `roboalign bench build`, `roboalign distill demo`,",
    "`roboalign assets pack-judge`; docs/judge.md gives the full lines. Licence: Apache-2.0, as the code.",
)

_TEACHER_CARD = (
    "A small vision-language teacher that ships with roboalign_ray: Qwen3-VL's architecture, trained from scratch.",
    "Data: the train split of benches of simulated episodes, their degradations, counterfactuals and rollouts of the",
    "shipped world model. Recipe: `roboalign bench build`, `roboalign judge train teacher`, `roboalign judge label`,",
    "`roboalign assets pack-teacher`; docs/judge.md gives the full lines. It answers as profile `demo` asks: eight",
    "frames of 64x64, scores without reasoning. Licence: Apache-2.0, as the code.",
)


def _card(part: Part, summary: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {_shown(value)} |" for key, value in summary.items()]
    measured = [f"| {key} | {_shown(value)} |" for key, value in figures.items()]
    lines = [
        f"# {part.title}",
        "",
        "Small weights that ship with roboalign_ray, so that the first run needs no hub, GPU or simulator.",
        "Data: simulated Meta-World episodes (train split of the recipe's store; the held-out split was not seen).",
        f"Recipe: {part.recipe}; docs/pretrain.md gives the full lines. Weights are stored as {part.dtype}.",
        "Licence: Apache-2.0, as the code.",
        "",
        "| training, last log line | |",
        "|---|---|",
        *rows,
    ]
    if measured:
        lines += ["", "| measured on held-out episodes | |", "|---|---|", *measured]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
