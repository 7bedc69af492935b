"""Converts the protocols' results to the report's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roboalign_ray.evaluation.bootstrap import bootstrap_mean, paired_difference
from roboalign_ray.evaluation.pairs import COMPARED, paired
from roboalign_ray.evaluation.protocols import EvaluationWindow
from roboalign_ray.evaluation.report.data import Comparison, EpisodeClip, Table
from roboalign_ray.evaluation.results import CLIP_METRICS, LongHorizonResult, MetricCurves, OneStepResult
from roboalign_ray.metrics.frame_metrics import LOWER_IS_BETTER

SHOWN_CURVES = ("psnr", "ssim", "lpips")
_BESIDE = (*SHOWN_CURVES, "roi_lpips", *CLIP_METRICS)
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
    series: Mapping[str, MetricCurves], metrics: Sequence[str] = SHOWN_CURVES, *, by_view: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """Per-frame curves for `ReportData.frame_curves`: metric -> series label -> mean over windows [T].

    Args:
        by_view: where there are several views, give each one's curves as "metric/view", not those of their mean.
    """
    views = list(next(iter(series.values())).views) if by_view else []
    if not views:
        return {
            metric: {label: curves.curve(metric) for label, curves in series.items()} for metric in metrics
        }
    return {
        f"{metric}/{view}": {label: curves.views[view].curve(metric) for label, curves in series.items()}
        for metric in metrics
        for view in views
    }


def policy_curves(result: LongHorizonResult) -> dict[str, dict[str, np.ndarray]]:
    """Per-frame curves of every refresh policy and of copying the first frame."""
    series = {policy.name: policy.metrics for policy in result.policies}
    return frame_curves({**series, "copy first frame": result.copy_first}, by_view=False)


def method_table(methods: Mapping[str, MetricCurves], title: str, note: str = "") -> Table:
    """Every method's figures over all frames, a row for each view: fidelity, and freezing and motion beside it."""
    rows: list[list[float | int | str]] = [
        [name, view, *(curves.total(metric).mean for metric in _BESIDE)]
        for name, whole in methods.items()
        for view, curves in _views(whole)
    ]
    columns = ["method", "view", "PSNR ↑", "SSIM ↑", "LPIPS ↓", "ROI-LPIPS ↓", "Frozen ↓", "Motion"]
    return Table(title, columns, rows, note, digits=[None, None, 2, 4, 4, 4, 3, 3])


def paired_table(pairs: Mapping[str, tuple[MetricCurves, MetricCurves]], title: str, note: str = "") -> Table:
    """Paired changes, windows won and the sign test, a row for each view and metric.

    Args:
        pairs: by what is compared, such as "after against before": the rival's curves, then the method's.
    """
    rows: list[list[float | int | str]] = []
    for name, (rival, method) in pairs.items():
        for (view, before), (_, after) in zip(_views(rival), _views(method), strict=True):
            beside = [
                _unbroken(f"{before.total(metric).mean:.3f} → {after.total(metric).mean:.3f}")
                for metric in CLIP_METRICS
            ]
            for metric in COMPARED:
                found, (label, unit, digits) = paired(before, after, metric), _TITLES[metric]
                change, test = found.change.difference, found.test
                limits = f"[{change.low:+.{digits}f}, {change.high:+.{digits}f}]"
                won = f"{test.wins} of {test.wins + test.losses}"
                rows.append(
                    [
                        name,
                        view,
                        f"{label}, {unit}" if unit else label,
                        _unbroken(f"{change.mean:+.{digits}f} {limits}"),
                        won,
                        100 * found.change.wins,
                        test.p,
                        *beside,
                    ]
                )
    columns = [
        *("comparison", "view", "metric", "change, 95 % interval", "windows won", "won, %", "sign test, p"),
        *("Frozen", "Motion"),
    ]
    return Table(title, columns, rows, note, digits=[*[None] * 5, 1, None, None, None])


def _unbroken(text: str) -> str:
    """A cell's text that stays on one line."""
    return text.replace(" ", "\u00a0")


def _views(curves: MetricCurves) -> list[tuple[str, MetricCurves]]:
    """Each view with its curves; where there is one alone, its name is not known here."""
    return list(curves.views.items()) or [("–", curves)]


class Shown(Protocol):
    """A result with videos, such as `PolicyResult`."""

    @property
    def metrics(self) -> MetricCurves: ...

    @property
    def frames(self) -> np.ndarray: ...


def episode_clips(
    windows: Sequence[EvaluationWindow], results: Mapping[str, Shown], titles: Sequence[str] | None = None
) -> list[EpisodeClip]:
    """One clip for each window whose frames all results kept, with the window's figures as caption.

    Args:
        windows: in the order of the evaluation.
        results: results over these windows, by the name of their panel.
        titles: one per window; None uses the prompt ids.
    """
    shown = min(len(windows), *(len(result.frames) for result in results.values()))
    clips = []
    for index, window in enumerate(windows[:shown]):
        panels = {
            "context": np.broadcast_to(window.prompt.context, window.real.shape),
            "real": window.real,
            **{name: result.frames[index] for name, result in results.items()},
        }
        psnr, lpips = (
            [result.metrics.per_episode(metric)[index] for result in results.values()]
            for metric in ("psnr", "lpips")
        )
        caption = (
            f"PSNR {' → '.join(f'{value:.2f}' for value in psnr)} dB, "
            f"LPIPS {' → '.join(f'{value:.4f}' for value in lpips)}"
        )
        clips.append(EpisodeClip(titles[index] if titles else window.prompt.prompt_id, panels, caption))
    return clips
