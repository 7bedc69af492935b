"""The whole loop in one job: measure, align, measure again, report.

held-out windows ─► before ─► run_align ─► after ─► report.html, TensorBoard
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.evaluation.protocols import standard_policies
from roboalign_ray.evaluation.report.assemble import (
    ScorePair,
    compare,
    episode_clips,
    frame_curves,
    method_table,
    one_step_table,
    paired_table,
    policy_curves,
)
from roboalign_ray.evaluation.report.data import Comparison, EpisodeClip, JudgedSection, ReportData, Table
from roboalign_ray.evaluation.report.html import write_report
from roboalign_ray.evaluation.report.tiles import tile
from roboalign_ray.evaluation.results import LongHorizonResult, MetricCurves, OneStepResult, PolicyResult
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.folder_lock import LOCK, folder_lock, one_job
from roboalign_ray.foundation.telemetry.metrics import MetricsWriter
from roboalign_ray.pipelines.align.job import ALIGNED, JOURNAL, AlignResult, run_align
from roboalign_ray.pipelines.align.launch import JUDGE
from roboalign_ray.pipelines.align.run_checkpoints import RUN_FILE
from roboalign_ray.pipelines.cluster.weight_folders import world_model_folder
from roboalign_ray.pipelines.evaluate.job import (
    Bench,
    make_bench,
    run_one_step,
    run_policies,
    run_rollouts,
    usual_protocols,
)
from roboalign_ray.pipelines.evaluate.report_parts import learning_curves, origin_of, titles_of
from roboalign_ray.pipelines.evaluate.reward_parts import part_scorer
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.rewards.fidelity import fidelity
from roboalign_ray.world_model.protocol import ModelCard

REPORT, SUMMARY = "report.html", "summary.json"
_OWN = {REPORT, SUMMARY, JOURNAL, ALIGNED, JUDGE, RUN_FILE, "checkpoints", "logs"}
_CLIPS = 6
_OBJECTIVES = {
    "grpo": "GRPO",
    "diffusion_nft": "DiffusionNFT",
    "softmax_contrastive": "softmax-contrastive weights",
}


def prepare_folder(out: Path, *, fresh: bool) -> None:
    """Empty the folder of an earlier run if `fresh` is set; other content is kept.

    Raises:
        UserError: `out` holds other things, or another job runs in it.
    """
    if not fresh or not out.exists():
        return
    with folder_lock(out):
        entries = {entry.name for entry in out.iterdir()} - {LOCK}
        if foreign := entries - _OWN:
            raise UserError(
                f"holds '{min(foreign)}', which no run wrote", where=str(out), remedy="choose another folder"
            )
        for name in entries:
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()


@one_job
def run_demo(
    config: JobConfig,
    out: Path,
    *,
    command: Sequence[str],
    resume: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Align the configured world model and report what changed on held-out episodes.

    Args:
        config: the job; `evaluation` says what is measured before and after.
        out: run directory; report.html and summary.json are written to it.
        command: the command line that repeats this run.
        resume: continue the alignment from its last checkpoint.
        fresh: first remove an earlier run in `out`, after all that the job needs was found.
        quiet: show no progress.

    Returns:
        the content of summary.json: the report's path, the before/after figures, counts and seconds.

    Raises:
        UserError: as `run_align` and `make_bench`.
    """
    began, settings = time.monotonic(), config.evaluation
    config = check_ready(Preflight("demo", config, out))
    prepare_folder(out, fresh=fresh)
    base = world_model_folder(config)
    bench = make_bench(config, horizon=settings.horizon, episodes=settings.episodes, model=base)
    scorer = part_scorer(bench)
    aligned = run_align(config, out, resume=resume, quiet=quiet)
    before = run_rollouts(bench, base, "before", keep=_CLIPS, scorer=scorer, quiet=quiet)
    after = run_rollouts(bench, aligned.model, "after", keep=_CLIPS, scorer=scorer, quiet=quiet)
    rewards, judged = _rewards(config, before, after), None
    if config.reward.needs_judge:
        judged, totals = _judged(config, bench, aligned, out, quiet=quiet)
        rewards = totals | rewards
    policies = standard_policies(settings, config.rollout.refresh, bench.decoder.card.policies)
    rivals = run_policies(bench, base, policies, quiet=quiet)
    steps = (
        run_one_step(bench, base, quiet=quiet) if "one_step" in usual_protocols(bench.decoder.card) else None
    )

    comparisons = compare(
        before.metrics, after.metrics, rewards=rewards, resamples=settings.bootstrap_resamples
    )
    clips = episode_clips(bench.windows, {"before": before, "after": after}, titles_of(bench))
    report = ReportData(
        title=f"Alignment report: {config.name}",
        subject=_subject(config, bench),
        comparisons=comparisons,
        windows=len(bench.windows),
        episodes=bench.episodes,
        horizon=settings.horizon,
        **origin_of(bench, command, began),
        learning_curves=learning_curves(aligned.curves),
        frame_curves=frame_curves(
            {"before": before.metrics, "after": after.metrics, "copy first frame": rivals.copy_first}
        ),
        policy_curves=policy_curves(rivals),
        training_frames=config.window_frames,
        policies=rivals.rows(),
        tables=[
            *_view_tables(before.metrics, after.metrics, rivals.copy_first),
            *([one_step_table(steps)] if steps else []),
        ],
        clips=clips,
        judged=judged,
        notes=_notes(config, bench),
    )
    path = write_report(report, out / REPORT)
    _write_tensorboard(aligned, before, after, clips)
    return _write_summary(out, path, comparisons, aligned, report.seconds, steps, rivals)


def _view_tables(before: MetricCurves, after: MetricCurves, still: MetricCurves) -> list[Table]:
    """Figures of each view and the windows won; of one view alone, the first table of the report has them."""
    if not before.views:
        return []
    methods = {"before": before, "after": after, "copy first frame": still}
    return [
        method_table(methods, "View by view"),
        paired_table({"after against before": (before, after)}, "Windows won, view by view"),
    ]


def _rewards(config: JobConfig, before: PolicyResult, after: PolicyResult) -> dict[str, ScorePair]:
    """Parts of the reward without their weights: fidelity from measured curves, then the others."""
    weights, episodes = config.reward.fidelity, before.metrics.episodes

    def measured(metrics: MetricCurves) -> np.ndarray:
        return fidelity(weights, *(metrics.per_episode(name) for name in ("lpips", "ssim", "psnr")))

    found = {}
    if weights.weight:
        found["Reward: fidelity"] = ScorePair(measured(before.metrics), measured(after.metrics), episodes)
    for name, values in before.scores.items():
        found[f"Reward: {name}"] = ScorePair(values, after.scores[name], episodes)
    return found


def _judged(
    config: JobConfig, bench: Bench, aligned: AlignResult, out: Path, *, quiet: bool
) -> tuple[JudgedSection, dict[str, ScorePair]]:
    """The judges' section of the report, and every judge's totals before and after, for its first table."""
    from roboalign_ray.pipelines.evaluate.judge_panel import (
        SHOWN,
        judged_scope,
        judged_section,
        make_panel,
        run_judged,
    )

    panel = make_panel(config, bench)
    before, _ = run_judged(panel, bench, world_model_folder(config), "before", quiet=quiet)
    after, clips = run_judged(panel, bench, aligned.model, "after", show=SHOWN, quiet=quiet)
    totals = {
        f"{name[0].upper()}{name[1:]}'s total": ScorePair(
            result.per_window(), after[name].per_window(), result.episodes, judged_scope(config, result)
        )
        for name, result in before.items()
    }
    return judged_section(config, aligned, out, before, after, clips), totals


def _subject(config: JobConfig, bench: Bench) -> str:
    settings = config.alignment
    card = bench.decoder.card
    objective = _OBJECTIVES.get(settings.objective, settings.objective)
    return (
        f"A {card.kind} world model {_seen(card)}, aligned by {objective}, rewarded for {_rewarded(config)}: "
        f"{settings.updates} updates of {settings.prompts_per_update} prompts × {settings.group_size} rollouts, "
        f"{_lengths(config)}."
    )


def _seen(card: ModelCard) -> str:
    return f"at {card.height}×{card.width}" + (f", {card.views} views" if card.views > 1 else "")


def _lengths(config: JobConfig) -> str:
    branching = config.rollout.branching
    if not branching.most:
        return f"{config.rollout.horizon} frames each"
    longest = (branching.most - 1) * branching.clip_frames
    return f"{branching.clip_frames} frames each, after up to {longest} self-generated frames"


def _rewarded(config: JobConfig) -> str:
    titles = {"fidelity": "fidelity to the real continuation", "judged": "the student judge's scores"}
    parts = {titles.get(name, name): part.weight for name, part in config.reward.parts.items()}
    named = [f"{weight:g} × {name}" if weight != 1 else name for name, weight in parts.items()]
    return " and ".join(named)


def _notes(config: JobConfig, bench: Bench) -> list[str]:
    refresh, card = config.rollout.refresh, bench.decoder.card
    sampled = ""
    if "logprobs" in card.capabilities:
        sampled = f", temperature {config.rollout.sampling.temperature:g}"
    window = f", W = {refresh.window}" if refresh.policy != "none" else ""
    notes = [
        f"Before and after are sampled with the same seeds{sampled} and refresh policy “{refresh.policy}”{window}; "
        "frame 0 is its own context.",
        f"ROI-LPIPS is LPIPS over the pixels whose temporal standard deviation in the real clip exceeds "
        f"{config.evaluation.roi_threshold:g}.",
    ]
    if card.views > 1:
        views = bench.windows[0].names
        notes.append(
            f"The model predicts the views {', '.join(views)}. Metrics are means over them. FVD and judges see the "
            "first one alone."
        )
    if not bench.lpips.real:
        notes.append(
            "The LPIPS backbone was not available: distances come from random features and are no LPIPS. "
            "Fetch it with 'roboalign assets fetch'."
        )
    return notes


def _write_tensorboard(
    aligned: AlignResult, before: PolicyResult, after: PolicyResult, clips: Sequence[EpisodeClip]
) -> None:
    """The report's per-frame curves and videos, and the learning curves of the job."""
    with MetricsWriter(aligned.logs.parent / "report") as writer:
        curves = {"before": before.metrics, "after": after.metrics}
        for frame in range(before.metrics.horizon):
            writer.scalars(
                frame + 1,
                {
                    f"per_frame/{metric}/{side}": float(metrics.curve(metric)[frame])
                    for side, metrics in curves.items()
                    for metric in ("psnr", "ssim", "lpips")
                },
            )
        for number, clip in enumerate(clips):
            writer.animation(0, f"context_real_before_after/{number}", tile(clip))


def _write_summary(
    out: Path,
    report: Path,
    comparisons: Sequence[Comparison],
    aligned: AlignResult,
    seconds: float,
    steps: OneStepResult | None,
    rivals: LongHorizonResult,
) -> dict[str, Any]:
    summary = {
        "report": str(report),
        "model": str(aligned.model),
        "tensorboard": str(aligned.logs.parent),
        "seconds": seconds,
        "before_after": {
            c.name: {
                "before": c.before.mean,
                "after": c.after.mean,
                "change": c.change.difference.mean,
                "low": c.change.difference.low,
                "high": c.change.difference.high,
                "wins": c.change.wins,
                "verdict": c.verdict,
            }
            for c in comparisons
        },
        "one_step_psnr": {}
        if steps is None
        else {
            "predicted": steps.predicted.total("psnr").mean,
            "shuffled_actions": steps.shuffled.total("psnr").mean,
            "copy_last": steps.copy_last.total("psnr").mean,
        },
        "policies": rivals.rows(),
        "counts": aligned.counts,
    }
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    return summary
