"""What an inverse dynamics model reads from a world model's rollouts: calibrates the penalty, measures executability.

    calibrate   training windows ─► rollouts of the base model ─► penalties ─► p0, their median
    measure     held-out windows ─► rollouts ─► share within limits, violations, motion, error, … with intervals,
                                    beside the same figures of the real continuations

One process, no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.config import JobConfig
from roboalign_ray.config.rewards import ExecutabilityRewardConfig
from roboalign_ray.evaluation.bootstrap import bootstrap_mean, paired_difference
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.pipelines.cluster.weight_folders import tokenizer_folder, world_model_folder
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.rewards.executability import ExecutabilityReward
from roboalign_ray.rewards.group_scorer import score_rollout
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Score, Scored
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.registry import check_world_model, open_world_model

CALIBRATION = "calibration.json"
EXECUTABILITY = "executability.json"
_PERCENTILES = (5, 25, 50, 75, 95)
_SMALLEST_P0 = 1e-6
# Measured quantities, whether more is better, and their titles.
FIGURES: Mapping[str, tuple[str, bool]] = {
    "plausible": ("plausible: within limits, moving and readable", True),
    "within_limits": ("share of rollouts within limits", True),
    "violations": ("share of steps outside a limit", False),
    "penalty": ("penalty P", False),
    "penalty_jerk": ("its jerk term", False),
    "motion": ("motion, share of the commanded", True),
    "error": ("following error, standard deviations", False),
    "trust": ("trust in the read actions", True),
    "rank": ("share of wrong commands that fit worse", True),
}


@dataclass
class Readings:
    """Scores of rollouts and of the real continuations.

    Attributes:
        generated: per window, those of its samples.
        real: per window, that of the real continuation.
    """

    generated: list[Sequence[Score]] = field(default_factory=list)
    real: list[Score] = field(default_factory=list)


@one_job
def run_calibrate(
    config: JobConfig, out: Path, *, groups: int = 32, samples: int = 4, quiet: bool = False
) -> dict[str, Any]:
    """Measure the penalty of the base model's rollouts of training windows. Writes `calibration.json` into `out`.

    Args:
        config: world model, store and rollouts; `reward.executability` names the inverse dynamics model.
        out: folder; made if it is missing.
        groups, samples: windows, and rollouts of each.
        quiet: show no progress.

    Returns:
        p0, percentiles of the penalty of rollouts, their median trust, median penalty of the real continuations,
        counts, and the model.

    Raises:
        UserError: a model, profile or store cannot be read, or no rollout can be scored.
    """
    uncalibrated = config.reward.executability.model_copy(update={"p0": 1.0})
    readings = _read_rollouts(config, uncalibrated, "train", groups, samples, quiet=quiet)
    scores = [score for group in readings.generated for score in group]
    penalties = _components(scores, "penalty")
    if not np.isfinite(penalties).any():
        raise UserError(
            f"no rollout could be scored ({_first_failure(readings)})", where="reward.executability"
        )
    known = penalties[np.isfinite(penalties)]
    summary = {
        "p0": max(float(np.median(known)), _SMALLEST_P0),
        "rollouts": len(known),
        "failed": len(penalties) - len(known),
        "percentiles": {str(p): float(np.percentile(known, p)) for p in _PERCENTILES},
        "trust": float(np.nanmedian(_components(scores, "trust"))),
        "real": float(np.nanmedian(_components(readings.real, "penalty"))),
        "model": uncalibrated.model,
        "embodiment": uncalibrated.embodiment,
        "world_model": str(world_model_folder(config)),
    }
    _write(out, CALIBRATION, summary)
    return summary


@one_job
def run_measure_executability(
    config: JobConfig,
    out: Path | None,
    *,
    groups: int = 32,
    samples: int = 2,
    model: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure rollouts of held-out windows. Writes `executability.json` into `out`.

    Args:
        config: as in `run_calibrate`.
        out: folder; None writes nothing.
        groups, samples: windows, and rollouts of each.
        model: folder of another world model; None takes the configured one.

    Returns:
        "generated", "real" and "difference" (generated minus real, by window): per figure the mean and its 95 %
        interval over windows; "windows", "failed".

    Raises:
        UserError: as `run_calibrate`.
    """
    settings = config.reward.executability.model_copy(update={"p0": config.reward.executability.p0 or 1.0})
    readings = _read_rollouts(config, settings, "held_out", groups, samples, model=model, quiet=quiet)
    summary = measured_figures(readings, config.evaluation.bootstrap_resamples)
    if out is not None:
        _write(out, EXECUTABILITY, summary)
    return summary


def measured_figures(readings: Readings, resamples: int) -> dict[str, Any]:
    """Means over windows with intervals, of rollouts, of the real continuations, and of the difference.

    Raises:
        UserError: no window could be scored.
    """
    summary: dict[str, Any] = {"generated": {}, "real": {}, "difference": {}}
    for name, (_, more_is_better) in FIGURES.items():
        generated = np.array([_mean(_components(group, name)) for group in readings.generated])
        real = _components(readings.real, name)
        if not np.isfinite(generated).any():
            raise UserError(
                f"no rollout could be scored ({_first_failure(readings)})", where="reward.executability"
            )
        summary["generated"][name] = bootstrap_mean(generated, resamples).as_json()
        summary["real"][name] = bootstrap_mean(real, resamples).as_json()
        paired = paired_difference(real, generated, resamples=resamples, lower_is_better=not more_is_better)
        summary["difference"][name] = paired.difference.as_json()
    failed = sum(isinstance(score, Failed) for group in readings.generated for score in group)
    return {**summary, "windows": len(readings.real), "failed": failed}


def figures_table(summary: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""

    def cell(figure: Mapping[str, float]) -> str:
        return f"{figure['mean']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"

    lines = ["| figure | rollouts | real | difference |", "|---|---|---|---|"]
    for name, (title, _) in FIGURES.items():
        cells = [cell(summary[part][name]) for part in ("generated", "real", "difference")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


class _WithReal:
    """Implements `Reward`: scores the samples, and keeps the score of the real continuation."""

    def __init__(self, reward: ExecutabilityReward, kept: list[Score]) -> None:
        self._reward, self._kept = reward, kept

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        if inputs.real is not None:
            self._kept.extend(self._reward.score(replace(inputs, generated=inputs.real[None])))
        return self._reward.score(inputs)


def _read_rollouts(
    config: JobConfig,
    settings: ExecutabilityRewardConfig,
    split: str,
    groups: int,
    samples: int,
    *,
    model: Path | None = None,
    quiet: bool,
) -> Readings:
    """Roll windows of a split out and score them; the same prompts and seeds at every call."""
    reward = config.reward.model_copy(update={"executability": settings.model_copy(update={"weight": 1.0})})
    config = config.model_copy(update={"reward": reward})
    config = check_ready(Preflight("executability", config, model=model))
    settings = config.reward.executability
    folder, tokenizer = model or world_model_folder(config), tokenizer_folder(config)
    card = check_world_model(folder, tokenizer=tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = open_world_model(folder, config.rollout, tokenizer=tokenizer, device=device)
    schedule = schedule_from_store(config.episodes, config.rollout, config.seed)
    names = schedule.train(0, groups) if split == "train" else schedule.held_out(groups)
    seeds = schedule.seeds(0 if split == "train" else -1, groups, samples)
    reader = PromptReader(config.episodes, card.height, card.width, card.views)
    readings = Readings()
    context = RewardContext(torch.device(device))
    scorer = _WithReal(ExecutabilityReward.from_context(settings, context), readings.real)
    with Progress("executability", total=groups * samples, unit="rollout", quiet=quiet) as progress:
        for name, drawn in zip(names, seeds, strict=True):
            [group] = world.rollout([reader.prompt(name, config.rollout.horizon)], [drawn])
            readings.generated.append(score_rollout(group, world, reader, scorer))
            progress.advance(samples)
    return readings


def _components(scores: Sequence[Score], name: str) -> np.ndarray:
    """One component of scores, float64 [N]; NaN of failed ones."""
    return np.array([score.components[name] if isinstance(score, Scored) else np.nan for score in scores])


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _first_failure(readings: Readings) -> str:
    scores = [score for group in readings.generated for score in group]
    return next((score.reason for score in scores if isinstance(score, Failed)), "no rollout")


def _write(out: Path, name: str, summary: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / name) as draft:
        draft.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
