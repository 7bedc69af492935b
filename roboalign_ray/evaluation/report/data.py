"""What a report is made of: plain numbers and arrays, and the judgement that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from roboalign_ray.evaluation.bootstrap import Interval, PairedDifference, bootstrap_mean, paired_difference
from roboalign_ray.evaluation.metrics import LOWER_IS_BETTER
from roboalign_ray.evaluation.results import MetricCurves, OneStepResult

Change = Literal["better", "worse", "unclear"]
_TITLES = {
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "lpips": ("LPIPS", "", 4),
    "roi_lpips": ("ROI-LPIPS", "", 4),
    "mse": ("MSE", "", 5),
    "freeze_rate": ("Freeze rate", "", 3),
}


@dataclass(frozen=True)
class Comparison:
    """One metric before and after, over the same episodes.

    Attributes:
        name, unit, digits: how it is shown.
        before, after: means with intervals over episodes.
        change: after - before, episode by episode.
        lower_is_better: its direction.
    """

    name: str
    before: Interval
    after: Interval
    change: PairedDifference
    lower_is_better: bool = False
    unit: str = ""
    digits: int = 4

    @property
    def verdict(self) -> Change:
        """ "better" or "worse" where the interval of the paired difference leaves zero out, else "unclear"."""
        low, high = self.change.difference.low, self.change.difference.high
        if not (low > 0 or high < 0):
            return "unclear"
        return "better" if (low > 0) != self.lower_is_better else "worse"

    def gain(self) -> tuple[float, float, float]:
        """Mean, low and high of the change in per cent of the value before; positive is better."""
        scale = 100 / abs(self.before.mean) if self.before.mean else float("nan")
        difference = self.change.difference
        mean, low, high = (scale * value for value in (difference.mean, difference.low, difference.high))
        return (-mean, -high, -low) if self.lower_is_better else (mean, low, high)


@dataclass(frozen=True)
class EpisodeClip:
    """What is shown of one episode: uint8 context [H, W, 3]; real, before, after [T, H, W, 3]."""

    title: str
    context: np.ndarray
    real: np.ndarray
    before: np.ndarray
    after: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A further table.

    Attributes:
        digits: decimals per column; None, or a column's None, gives four significant digits.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[float | int | str]]
    note: str = ""
    digits: Sequence[int | None] | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Sections whose data is empty are left out.

    Attributes:
        title: of the page.
        subject: one sentence: what was aligned, how, on what.
        comparisons: before and after; their order is the table's, the first four become the tiles.
        episodes: held-out windows behind them.
        horizon: frames of a rollout.
        lpips_label, lpips_real: which LPIPS the numbers are.
        settings: the resolved config as a tree of plain values.
        learning_curves: name -> (steps [N], values [N]).
        frame_curves: metric name ("psnr") -> series label -> values [T]. "before" and "after" are drawn in the
            colours of the table, other series (baselines) dashed.
        policy_curves: the same for refresh policies, under the policies table.
        training_frames: frames of a training window; marked in per-frame curves.
        policies: rows as `LongHorizonResult.rows` gives them.
        tables: further tables.
        clips: videos, shown at `fps`.
        command, seed, versions, hardware, seconds, created: how to make it again and what that took.
        notes: anything the reader must know to read the numbers rightly.
    """

    title: str
    subject: str
    comparisons: Sequence[Comparison]
    episodes: int
    horizon: int
    lpips_label: str
    lpips_real: bool
    settings: Mapping[str, Any]
    command: str
    seed: int
    versions: Mapping[str, str]
    hardware: str
    seconds: float
    created: str
    learning_curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    frame_curves: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    policy_curves: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    training_frames: int | None = None
    policies: Sequence[Mapping[str, float | int | str]] = ()
    tables: Sequence[Table] = ()
    clips: Sequence[EpisodeClip] = ()
    fps: float = 6.0
    notes: Sequence[str] = ()

    def verdict(self) -> tuple[Change, str, str]:
        """Overall change, a headline of two or three words, and the sentence that supports it."""
        kinds = [comparison.verdict for comparison in self.comparisons]
        better, worse, total = kinds.count("better"), kinds.count("worse"), len(kinds)
        where = f"on {self.episodes} held-out episodes, {self.horizon} frames each"
        if better and not worse:
            return (
                "better",
                "Alignment helped",
                f"{better} of {total} metrics improved and none got worse, {where}.",
            )
        if worse and not better:
            return (
                "worse",
                "Alignment hurt",
                f"{worse} of {total} metrics got worse and none improved, {where}.",
            )
        if better:
            return (
                "unclear",
                "Mixed result",
                f"{better} of {total} metrics improved and {worse} got worse, {where}.",
            )
        return "unclear", "No clear change", f"No metric moved beyond its 95 % interval, {where}."


def compare(
    before: MetricCurves,
    after: MetricCurves,
    *,
    reward: tuple[np.ndarray, np.ndarray] | None = None,
    resamples: int = 2000,
) -> list[Comparison]:
    """Reward first, then every metric, in the order that the report shows.

    Args:
        before, after: over the same windows.
        reward: reward per window [E] before and after, where there is one.
        resamples: of the bootstrap.
    """
    comparisons = []
    if reward is not None:
        comparisons.append(_comparison("Reward", *reward, False, "", 4, resamples))
    for metric, (name, unit, digits) in _TITLES.items():
        values = before.per_episode(metric), after.per_episode(metric)
        comparisons.append(_comparison(name, *values, metric in LOWER_IS_BETTER, unit, digits, resamples))
    return comparisons


def _comparison(
    name: str, before: np.ndarray, after: np.ndarray, lower: bool, unit: str, digits: int, resamples: int
) -> Comparison:
    return Comparison(
        name=name,
        before=bootstrap_mean(before, resamples),
        after=bootstrap_mean(after, resamples),
        change=paired_difference(before, after, lower_is_better=lower, resamples=resamples),
        lower_is_better=lower,
        unit=unit,
        digits=digits,
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
        note=f"Every next frame is predicted from {result.history}.",
    )
