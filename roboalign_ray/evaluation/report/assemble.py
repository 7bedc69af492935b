"""Converts the protocols' results to the report's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.evaluation.bootstrap import bootstrap_mean, paired_difference
from roboalign_ray.evaluation.protocols import EvaluationWindow
from roboalign_ray.evaluation.report.data import Comparison, EpisodeClip, Table
from roboalign_ray.evaluation.results import LongHorizonResult, MetricCurves, OneStepResult, PolicyResult
from roboalign_ray.metrics.frame_metrics import LOWER_IS_BETTER
from roboalign_ray.world_model.protocol import first_view

SHOWN_CURVES = ("psnr", "ssim", "lpips")
_TITLES = {
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "lpips": ("LPIPS", "", 4),
    "roi_lpips": ("ROI-LPIPS", "", 4),
    "mse": ("MSE", "", 5),
    "freeze_rate": ("Freeze rate", "", 3),
}


@dataclass(frozen=True)
class ScorePair:
    """A score of the same windows before and after.

    Attributes:
        before, after: float64 [E], one value per window.
        episodes: the episode of every window, E names; if empty, every window has one of its own.
        scope: what was scored, where these are not the report's windows; see `Comparison`.
    """

    before: np.ndarray
    after: np.ndarray
    episodes: tuple[str, ...] = ()
    scope: str = ""


def compare(
    before: MetricCurves,
    after: MetricCurves,
    *,
    rewards: Mapping[str, ScorePair] | None = None,
    resamples: int = 2000,
) -> list[Comparison]:
    """Rewards first, then every metric, in the order that the report shows.

    Args:
        before, after: over the same windows.
        rewards: by name; these windows may differ from the metrics'.
        resamples: bootstrap resamples.
    """
    comparisons = [_comparison(name, pair, False, "", 4, resamples) for name, pair in (rewards or {}).items()]
    for metric, (name, unit, digits) in _TITLES.items():
        pair = ScorePair(before.per_episode(metric), after.per_episode(metric), before.episodes)
        comparisons.append(_comparison(name, pair, metric in LOWER_IS_BETTER, unit, digits, resamples))
    return comparisons


def _comparison(
    name: str, pair: ScorePair, lower: bool, unit: str, digits: int, resamples: int
) -> Comparison:
    before, after, episodes = pair.before, pair.after, pair.episodes
    return Comparison(
        name=name,
        before=bootstrap_mean(before, resamples, episodes=episodes),
        after=bootstrap_mean(after, resamples, episodes=episodes),
        change=paired_difference(
            before, after, lower_is_better=lower, resamples=resamples, episodes=episodes
        ),
        lower_is_better=lower,
        unit=unit,
        digits=digits,
        scope=pair.scope,
    )


def one_step_table(result: OneStepResult) -> Table:
    """One-step prediction against copying the last frame and against shuffled actions."""
    rows: list[list[float | int | str]] = []
    ways = (("true actions", result.predicted), ("shuffled actions", result.shuffled))
    for name, curves in (*ways, ("copy the last frame", result.copy_last)):
        totals = [curves.total(metric) for metric in ("psnr", "ssim", "lpips", "roi_lpips", "mse")]
        rows.append([name, *(total.mean for total in totals)])
    return Table(
        title="One step ahead",
        columns=["prediction", "PSNR ↑", "SSIM ↑", "LPIPS ↓", "ROI-LPIPS ↓", "MSE ↓"],
        rows=rows,
        digits=[None, 2, 4, 4, 4, 5],
        note=f"Each frame is predicted from the real frames before it, {result.frames_seen} at most.",
    )


def frame_curves(
    series: Mapping[str, MetricCurves], metrics: Sequence[str] = SHOWN_CURVES
) -> dict[str, dict[str, np.ndarray]]:
    """Per-frame curves for `ReportData.frame_curves`: metric -> series label -> mean over windows [T]."""
    return {metric: {label: curves.curve(metric) for label, curves in series.items()} for metric in metrics}


def policy_curves(result: LongHorizonResult) -> dict[str, dict[str, np.ndarray]]:
    """Per-frame curves of every refresh policy and of copying the first frame."""
    series = {policy.name: policy.metrics for policy in result.policies}
    return frame_curves({**series, "copy first frame": result.copy_first})


def episode_clips(
    windows: Sequence[EvaluationWindow],
    before: PolicyResult,
    after: PolicyResult,
    titles: Sequence[str] | None = None,
) -> list[EpisodeClip]:
    """One clip for each window whose frames both results kept, with the window's figures as caption.

    Args:
        windows: in the order of the evaluation.
        before, after: results over these windows.
        titles: one per window; None uses the prompt ids.
    """
    psnr = before.metrics.per_episode("psnr"), after.metrics.per_episode("psnr")
    lpips = before.metrics.per_episode("lpips"), after.metrics.per_episode("lpips")
    clips = []
    for index in range(min(len(before.frames), len(after.frames), len(windows))):
        window = windows[index]
        figures = (
            f"PSNR {psnr[0][index]:.2f} → {psnr[1][index]:.2f} dB",
            f"LPIPS {lpips[0][index]:.4f} → {lpips[1][index]:.4f}",
        )
        clips.append(
            EpisodeClip(
                title=titles[index] if titles else window.prompt.prompt_id,
                context=first_view(window.prompt.context),
                real=first_view(window.real),
                before=before.frames[index],
                after=after.frames[index],
                caption=", ".join(figures),
            )
        )
    return clips
