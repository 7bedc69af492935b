"""Pack a pre-training run into the folders that ship inside the package: bfloat16 weights and a card each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.pretrain import STAGES, Stage
from pipelines.train_job import SUMMARY
from roboalign_ray.foundation.failures import UserError

_TITLES: dict[Stage, str] = {
    "tokenizer": "Dual-branch FSQ tokenizer",
    "world_model": "Token world model, pre-trained",
}


def pack(run: Path, target: Path, evaluation: Path | None = None) -> dict[str, int]:
    """Copy both models of `run` into `target/tokenizer` and `target/world_model`, weights as bfloat16.

    Args:
        run: output folder of `run_pretrain`.
        target: folder that receives the two.
        evaluation: `evaluation.json` of `roboalign evaluate` on these weights, for the cards' figures.

    Returns:
        bytes per model.

    Raises:
        UserError: a stage is not complete, or the evaluation cannot be read.
    """
    for stage in STAGES:
        if not (run / stage / SUMMARY).is_file():
            raise UserError(
                f"stage '{stage}' is not complete", where=str(run), remedy="run 'roboalign pretrain'"
            )
    figures = _read_figures(evaluation)
    sizes: dict[str, int] = {}
    for stage in STAGES:
        folder = target / stage
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run / stage, folder)
        for weights in folder.glob("*.safetensors"):
            _halve(weights)
        summary = json.loads((folder / SUMMARY).read_text())
        (folder / "README.md").write_text(_card(stage, summary, figures))
        sizes[stage] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return sizes


def _read_figures(evaluation: Path | None) -> dict[str, Any]:
    if evaluation is None:
        return {}
    try:
        return json.loads(evaluation.read_text()).get("headline", {})
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as an evaluation ({error})", where=str(evaluation)) from error


def _halve(weights: Path) -> None:
    """Cast floating-point tensors to bfloat16 in place; they are read back into float32 models."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(weights, framework="pt") as reader:
        metadata = reader.metadata()
    state = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in load_file(weights).items()
    }
    save_file(state, weights, metadata=metadata)


def _card(stage: Stage, summary: dict[str, Any], figures: dict[str, Any]) -> str:
    rows = [f"| {key} | {_shown(value)} |" for key, value in summary.items()]
    measured = [f"| {key} | {_shown(value)} |" for key, value in figures.items()]
    lines = [
        f"# {_TITLES[stage]}",
        "",
        "Small weights that ship with roboalign_ray, so that the first run needs no hub, GPU or simulator.",
        "Data: simulated Meta-World episodes (train split of the recipe's store; the held-out split was not seen).",
        "Recipe: `roboalign episodes generate`, `roboalign pretrain shipped`, `roboalign assets pack`; the README",
        "gives the full lines. Weights are stored as bfloat16. Licence: Apache-2.0, as the code.",
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
