"""The data of a report: plain numbers and arrays, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from roboalign_ray.evaluation.bootstrap import (
    LEAST_EPISODES,
    Interval,
    PairedDifference,
    extent,
    resampling,
)

Change = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Comparison:
    """One metric before and after, over the same windows.

    Attributes:
        name, unit, digits: how it is shown.
        before, after: means with intervals.
        change: after - before, window by window.
        lower_is_better: its direction.
        scope: what was measured, where that is not what the report names at its top: "16 windows of 16 held-out
            episodes, 12 frames each".
    """

    name: str
    before: Interval
    after: Interval
    change: PairedDifference
    lower_is_better: bool = False
    unit: str = ""
    digits: int = 4
    scope: str = ""

    @property
    def verdict(self) -> Change:
        """ "better" or "worse" if the interval of the paired difference excludes zero, else "unclear"."""
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
    """Videos of one episode, side by side.

    Attributes:
        title, caption: what stands beside them.
        panels: name -> frames uint8 [T, V, H, W, 3], alike in shape, from left to right. Views stand one below the
            other.
    """

    title: str
    panels: Mapping[str, np.ndarray]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        digits: decimals per column; None, or a column's None, gives four significant digits.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[float | int | str]]
    note: str = ""
    digits: Sequence[int | None] | None = None


@dataclass(frozen=True)
class JudgedClip:
    """A rollout and its judgements.

    Attributes:
        title: the instruction and the window.
        frames: uint8 [T, H, W, 3], start frame first.
        scores: (judge, its six scores and total, float [7]); NaN where there is no score.
        rationale: a judge's reasons; "" if there are none.
    """

    title: str
    frames: np.ndarray
    scores: Sequence[tuple[str, np.ndarray]]
    rationale: str = ""


@dataclass(frozen=True)
class JudgedSection:
    """The rubric's part of a report.

    Attributes:
        table: per dimension, before and after, by judge.
        drift: title -> label ("student", "teacher") -> (updates [N], values [N]).
        events: one line each: relabellings, alarms.
        clips: rollouts after alignment, with reasons.
    """

    table: Table
    drift: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    events: Sequence[str] = ()
    clips: Sequence[JudgedClip] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Sections whose data is empty are left out.

    Attributes:
        title: title of the page.
        subject: one sentence: which model was aligned, by which method, on which data.
        comparisons: before and after, in the order of the table; the first four are also shown as tiles.
        windows, episodes: number of held-out windows, and of the episodes that they are of.
        horizon: frames of a rollout.
        lpips_label, lpips_real: which LPIPS backbone was used.
        settings: the resolved config as a tree of plain values.
        learning_curves: name -> (steps [N], values [N]).
        frame_curves: metric name ("psnr", or "psnr/front" of one view) -> series label -> values [T]. "before" and
            "after" are drawn in the colours of the table, copying baselines dashed.
        policy_curves: the same for refresh policies, under the policies table.
        training_frames: frames of a training window; marked in per-frame curves.
        policies: rows as returned by `LongHorizonResult.rows`.
        tables: further tables.
        clips: videos, shown at `fps`.
        judged: rubric scores; None if there was no judge.
        command, seed, versions, hardware, seconds, created: how the report was made, and how to reproduce it.
        notes: remarks that are needed to interpret the numbers.
    """

    title: str
    subject: str
    comparisons: Sequence[Comparison]
    windows: int
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
    judged: JudgedSection | None = None
    fps: float = 6.0
    notes: Sequence[str] = ()

    @property
    def extent(self) -> str:
        """How much was measured."""
        return extent(self.windows, self.episodes)

    @property
    def resampling(self) -> str:
        """What the intervals resample."""
        return resampling(self.windows, self.episodes)

    def verdict(self) -> tuple[Change, str, str]:
        """Overall change, a headline of two or three words, and the sentences that support it."""
        change, headline, sentence = self._verdict()
        if change != "unclear" and self.episodes < LEAST_EPISODES:
            sentence += f" This is weak evidence: fewer than {LEAST_EPISODES} episodes say little about other episodes."
        return change, headline, sentence

    def _verdict(self) -> tuple[Change, str, str]:
        kinds = [comparison.verdict for comparison in self.comparisons]
        better, worse, total = kinds.count("better"), kinds.count("worse"), len(kinds)
        where = f"on {self.extent}, {self.horizon} frames each"
        for scope in dict.fromkeys(comparison.scope for comparison in self.comparisons if comparison.scope):
            names = [comparison.name for comparison in self.comparisons if comparison.scope == scope]
            where += f" ({', '.join(names)}: {scope})"
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
