"""Evaluation of a tokenizer and a world model on held-out windows: reconstruction, one step, thirty frames.

Where the job names an inverse dynamics model, also whether rollouts can be executed.

out/
  evaluation.json      every figure, with intervals and per-frame curves
  evaluation.png       per-frame curves of all refresh policies
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from roboalign_ray.config import JobConfig, RefreshConfig
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.episodes.windows import held_out_windows
from roboalign_ray.evaluation.bootstrap import resampling
from roboalign_ray.evaluation.protocols import (
    EvaluationWindow,
    Scorer,
    evaluate_rollouts,
    long_horizon,
    one_step,
    standard_policies,
)
from roboalign_ray.evaluation.reconstruction import ReconstructionResult, reconstruct
from roboalign_ray.evaluation.results import LongHorizonResult, MetricCurves, OneStepResult, PolicyResult
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.metrics.perceptual import PerceptualDistance, load_lpips
from roboalign_ray.pipelines.cluster.weight_folders import tokenizer_folder, world_model_folder
from roboalign_ray.pipelines.evaluate.executability import run_measure_executability
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.prompts import PromptReader, prompt_spec
from roboalign_ray.world_model.protocol import Decoder, ModelCard, WorldModel
from roboalign_ray.world_model.refresh import check_clips
from roboalign_ray.world_model.registry import open_decoder, open_world_model

Protocol = Literal["reconstruction", "one_step", "long_horizon"]
PROTOCOLS: tuple[Protocol, ...] = ("reconstruction", "one_step", "long_horizon")
_EXECUTABILITY_HEADLINE = ("plausible", "motion", "error")
_ONE_STEP_EVERY = 5  # frames of a window resemble each other, so every fifth frame is enough


@dataclass(frozen=True)
class Bench:
    """The measurement setup: held-out windows, the perceptual distance, and the decoder of rollouts.

    Attributes:
        decoder: decoder of the world model that the windows were cut for.
    """

    config: JobConfig
    decoder: Decoder
    windows: list[EvaluationWindow]
    lpips: PerceptualDistance
    device: str

    @property
    def episodes(self) -> int:
        """Number of the episodes that the windows are of."""
        return len({window.episode for window in self.windows})

    def model(
        self, folder: Path, refresh: RefreshConfig | None = None, *, temperature: float | None = None
    ) -> WorldModel:
        """The world model in `folder` with the job's refresh policy and sampling, or these arguments.

        What only makes the samples of a training group differ (`rollout.diffusion.action_noise`) is left out.
        """
        rollout = self.config.rollout
        rollout = rollout.model_copy(update={"diffusion": rollout.diffusion.without_exploration()})
        if refresh is not None:
            rollout = rollout.model_copy(update={"refresh": refresh})
        if temperature is not None:
            sampling = rollout.sampling.model_copy(update={"temperature": temperature})
            rollout = rollout.model_copy(update={"sampling": sampling})
        tokenizer = tokenizer_folder(self.config)
        return open_world_model(folder, rollout, tokenizer=tokenizer, device=self.device)


def make_bench(config: JobConfig, *, horizon: int, episodes: int, model: Path) -> Bench:
    """Cut `episodes` held-out windows of `horizon` frames; frame 0 is its own context.

    Args:
        model: world model folder, which determines the frame size.

    Raises:
        UserError: weights or store cannot be read, no held-out episode is long enough, or `horizon` is no whole number
            of the world model's clips.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = open_decoder(model, tokenizer=tokenizer_folder(config), device=device)
    card = decoder.card
    check_clips(horizon, card, "evaluation.horizon")
    spec = prompt_spec(config.episodes, horizon, card.height, card.width)
    store = open_store(config.episodes.store)
    cut = held_out_windows(store, spec, episodes, fraction=config.episodes.held_out_fraction)
    reader = PromptReader(config.episodes, card.height, card.width, card.views)
    windows = []
    for window in cut:
        name = PromptName(window.episode_id, window.start)
        recorded = reader.recorded(name, horizon)
        windows.append(EvaluationWindow(reader.prompt(name, horizon), recorded.frames[1:], recorded.views))
    lpips = load_lpips(config.evaluation.lpips_network, device=device)
    return Bench(config, decoder, windows, lpips, device)


@one_job
def run_evaluate(
    config: JobConfig,
    out: Path,
    *,
    model: Path | None = None,
    protocols: Sequence[Protocol] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure and write `evaluation.json` and `evaluation.png`.

    Args:
        config: the job; `evaluation` sets the number and length of windows.
        out: run directory.
        model: world model folder; None takes the configured one.
        protocols: protocols to run; None runs those that the model supports, and measures executability where
            `reward.executability.model` names an inverse dynamics model.
        quiet: show no progress.

    Returns:
        the content of the JSON file.
    """
    settings = config.evaluation
    folder = model or world_model_folder(config)
    config = check_ready(Preflight("evaluate", config, out, model=folder))
    bench = make_bench(config, horizon=settings.horizon, episodes=settings.episodes, model=folder)
    result: dict[str, Any] = {
        "lpips": bench.lpips.label,
        "windows": len(bench.windows),
        "episodes": bench.episodes,
        "intervals": resampling(len(bench.windows), bench.episodes),
        "horizon": settings.horizon,
        "model": str(model) if model else config.world_model_weights,
        "headline": {},
    }
    runners: dict[Protocol, Callable[[], dict[str, Any]]] = {
        "reconstruction": partial(_reconstruction, bench),
        "one_step": partial(_one_step, bench, folder, quiet),
        "long_horizon": partial(_long_horizon, bench, folder, out, quiet),
    }
    if protocols is None and config.reward.executability.model is not None:
        found = run_measure_executability(
            config,
            None,
            groups=settings.judged_windows,
            samples=settings.judged_samples,
            model=model,
            quiet=quiet,
        )
        result["executability"] = found
        result["headline"] |= {name: found["generated"][name]["mean"] for name in _EXECUTABILITY_HEADLINE}
    for protocol in usual_protocols(bench.decoder.card) if protocols is None else protocols:
        if protocol not in runners:
            raise UserError(f"no protocol '{protocol}'", remedy=f"there are {', '.join(runners)}")
        part = runners[protocol]()
        result["headline"] |= part.pop("headline")
        result[protocol] = part
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def usual_protocols(card: ModelCard) -> list[Protocol]:
    """All but those that ask what a world model does not have: a tokenizer, or single frames."""
    cannot = set() if "tokenizer" in card.capabilities else {"reconstruction"}
    cannot |= set() if card.clip_frames == 1 else {"one_step"}
    return [protocol for protocol in PROTOCOLS if protocol not in cannot]


def run_policies(
    bench: Bench, folder: Path, policies: Sequence[RefreshConfig], *, quiet: bool = False
) -> LongHorizonResult:
    """Every refresh policy of one model on the bench's windows."""
    total = len(policies) * len(bench.windows)
    with Progress("refresh policies", total, unit="window", quiet=quiet) as progress:
        return long_horizon(
            partial(bench.model, folder),
            policies,
            bench.windows,
            bench.lpips,
            bench.config.evaluation,
            seed=bench.config.seed,
            advance=progress.advance,
        )


def run_rollouts(
    bench: Bench, folder: Path, label: str, *, keep: int, scorer: Scorer | None = None, quiet: bool = False
) -> PolicyResult:
    """One model with the job's own refresh policy on the bench's windows: one side of before/after."""
    with Progress(label, len(bench.windows), unit="window", quiet=quiet) as progress:
        return evaluate_rollouts(
            bench.model(folder),
            bench.windows,
            bench.lpips,
            bench.config.evaluation,
            bench.config.rollout.refresh,
            seed=bench.config.seed,
            keep=keep,
            advance=progress.advance,
            scorer=scorer,
        )


def run_one_step(bench: Bench, folder: Path, *, quiet: bool = False) -> OneStepResult:
    """One step from real frames, at every fifth frame of each window."""
    steps = len(range(0, bench.windows[0].prompt.horizon, _ONE_STEP_EVERY))
    with Progress("one step", 2 * steps * len(bench.windows), unit="prediction", quiet=quiet) as progress:
        return one_step(
            bench.model(folder, temperature=bench.config.evaluation.one_step_temperature),
            bench.windows,
            bench.lpips,
            bench.config.evaluation,
            seed=bench.config.seed,
            every=_ONE_STEP_EVERY,
            advance=progress.advance,
        )


def run_reconstruction(bench: Bench) -> ReconstructionResult:
    """Reconstruction up to the largest distance from the context that the longest compared SWR window has."""
    settings = bench.config.evaluation
    tokenizer = DualBranchTokenizer.load(tokenizer_folder(bench.config)).to(bench.device)
    return reconstruct(
        tokenizer,
        bench.windows,
        bench.lpips,
        frames=max(settings.windows),
        resamples=settings.bootstrap_resamples,
    )


def _reconstruction(bench: Bench) -> dict[str, Any]:
    result = run_reconstruction(bench)
    headline = {
        f"reconstruction_{branch}_psnr_db": figures["psnr"].mean for branch, figures in result.figures.items()
    }
    return {
        "headline": headline,
        "frames": result.frames,
        "codes": result.codes,
        "codes_used": result.codes_used,
        "perplexity": result.perplexity,
        "figures": {b: {m: vars(i) for m, i in f.items()} for b, f in result.figures.items()},
    }


def _one_step(bench: Bench, folder: Path, quiet: bool) -> dict[str, Any]:
    result = run_one_step(bench, folder, quiet=quiet)
    ways = {
        "predicted": result.predicted,
        "shuffled_actions": result.shuffled,
        "copy_last": result.copy_last,
    }
    figures = {way: _totals(curves) for way, curves in ways.items()}
    headline = {f"one_step_{way}_psnr_db": totals["psnr"]["mean"] for way, totals in figures.items()}
    views = {way: curves.by_view() for way, curves in ways.items()}
    return {"headline": headline, "frames_seen": result.frames_seen, "figures": figures, "views": views}


def _long_horizon(bench: Bench, folder: Path, out: Path, quiet: bool) -> dict[str, Any]:
    from roboalign_ray.evaluation.figures import save_policy_curves

    known = bench.decoder.card.policies
    policies = standard_policies(bench.config.evaluation, bench.config.rollout.refresh, known)
    result = run_policies(bench, folder, policies, quiet=quiet)
    out.mkdir(parents=True, exist_ok=True)
    save_policy_curves(result, out / "evaluation.png", bench.config.window_frames)
    rows = result.rows()
    headline = {f"{row['policy']} psnr_db": row["psnr"] for row in rows}
    curves = {
        policy.name: {name: policy.metrics.curve(name).tolist() for name in policy.metrics.per_frame}
        | {"seconds_per_frame": policy.seconds_per_frame.tolist()}
        for policy in result.policies
    }
    views = {policy.name: policy.metrics.by_view() for policy in result.policies}
    return {"headline": headline, "rows": rows, "curves": curves, "views": views}


def _totals(curves: MetricCurves) -> dict[str, dict[str, float]]:
    return {name: vars(curves.total(name)) for name in curves.per_frame}
