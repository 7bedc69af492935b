"""Results of the protocols: curves per window, totals with intervals, and one table row per policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from roboalign_ray.config import RefreshConfig
from roboalign_ray.evaluation.bootstrap import Interval, bootstrap_mean
from roboalign_ray.metrics.frame_metrics import FRAME_METRICS

CLIP_METRICS = ("freeze_rate", "motion")  # one value per clip


@dataclass(frozen=True)
class MetricCurves:
    """Metrics of one prediction method over the windows.

    Attributes:
        per_frame: metric name -> float64 [E, T], mean over samples and views; NaN where undefined.
        freeze_rate: float64 [E].
        motion: float64 [E], as a share of the real clip's; neither more nor less is better than 1.
        resamples: bootstrap resamples.
        views: the same of each camera view by its name, where there are several.
        episodes: the episode of every window, E names; if empty, every window has one of its own.
    """

    per_frame: Mapping[str, np.ndarray]
    freeze_rate: np.ndarray
    motion: np.ndarray
    resamples: int = 2000
    views: Mapping[str, MetricCurves] = field(default_factory=dict)
    episodes: tuple[str, ...] = ()

    @classmethod
    def over(cls, views: Mapping[str, MetricCurves]) -> MetricCurves:
        """The mean over views, at least one."""
        curves = list(views.values())
        return curves[0] if len(curves) == 1 else cls._mean(curves, views)

    @classmethod
    def averaged(cls, runs: Sequence[MetricCurves]) -> MetricCurves:
        """The mean over runs on the same windows, view by view: one value per window and frame remains."""
        views = {view: cls._mean([run.views[view] for run in runs], {}) for view in runs[0].views}
        return cls._mean(runs, views)

    @classmethod
    def _mean(cls, curves: Sequence[MetricCurves], views: Mapping[str, MetricCurves]) -> MetricCurves:
        per_frame = {
            name: np.mean([one.per_frame[name] for one in curves], axis=0) for name in curves[0].per_frame
        }
        return cls(
            per_frame,
            freeze_rate=np.mean([one.freeze_rate for one in curves], axis=0),
            motion=np.mean([one.motion for one in curves], axis=0),
            resamples=curves[0].resamples,
            views=dict(views),
            episodes=curves[0].episodes,
        )

    def by_view(self) -> dict[str, dict[str, float]]:
        """View to metric to mean over windows and frames; empty where there is one view."""
        return {
            view: {name: curves.total(name).mean for name in (*FRAME_METRICS, *CLIP_METRICS)}
            for view, curves in self.views.items()
        }

    @property
    def horizon(self) -> int:
        """Frames T."""
        return next(iter(self.per_frame.values())).shape[1]

    def per_episode(self, metric: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """One value per window [E]: the mean over frames [first, last)."""
        if metric in CLIP_METRICS:
            return getattr(self, metric)
        return self.per_frame[metric][:, first:last].mean(axis=1)

    def total(self, metric: str) -> Interval:
        """Mean over all frames, with its interval."""
        return self._interval(self.per_episode(metric))

    def first(self, metric: str, frames: int = 10) -> Interval:
        """Mean over the first frames."""
        return self._interval(self.per_episode(metric, 0, frames))

    def last(self, metric: str, frames: int = 10) -> Interval:
        """Mean over the last frames."""
        return self._interval(self.per_episode(metric, max(0, self.horizon - frames)))

    def beyond(self, metric: str, frame: int) -> Interval:
        """Mean over the frames from `frame` on, for example those beyond the training window."""
        return self._interval(self.per_episode(metric, frame))

    def _interval(self, values: np.ndarray) -> Interval:
        return bootstrap_mean(values, self.resamples, episodes=self.episodes)

    def curve(self, metric: str) -> np.ndarray:
        """Mean over windows [T]; windows on which the metric is undefined are left out."""
        values_ET = self.per_frame[metric]
        defined_ET = np.isfinite(values_ET)
        count_T = defined_ET.sum(axis=0)
        sums_T = np.where(defined_ET, values_ET, 0.0).sum(axis=0)
        return np.divide(sums_T, count_T, out=np.full(len(count_T), np.nan), where=count_T > 0)


@dataclass(frozen=True)
class OneStepResult:
    """The result of `one_step`.

    Attributes:
        predicted, shuffled, copy_last: with true actions, with shuffled actions, and copying the previous frame.
        lpips_label: which LPIPS backbone was used.
        frames_seen: the largest number of real frames that a prediction saw.
    """

    predicted: MetricCurves
    shuffled: MetricCurves
    copy_last: MetricCurves
    lpips_label: str
    frames_seen: int


@dataclass(frozen=True)
class PolicyResult:
    """One refresh policy's rollouts.

    Attributes:
        name: "SWR, W = 6".
        refresh: the policy.
        metrics: curves and totals.
        seconds_per_frame: float [T], wall time of each frame, mean over batches of `batch` windows.
        seconds: wall time of all rollouts without decoding the results.
        peak_sequence: tokens of the longest prompt.
        cache_bytes: most bytes of keys and values held at once for one window.
        frames: uint8 [K, T, V, H, W, 3], the first K windows' first samples.
        fvd: Fréchet video distance to the real clips over all windows' first samples, first view; None if not
            requested.
        scores: name of a further score -> float64 [E], mean over the samples that have one; NaN if none has.
    """

    name: str
    refresh: RefreshConfig
    metrics: MetricCurves
    seconds_per_frame: np.ndarray
    seconds: float
    peak_sequence: int
    cache_bytes: int
    frames: np.ndarray
    fvd: float | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class LongHorizonResult:
    """The result of `long_horizon`: every policy over the same windows, and copying the first frame."""

    policies: tuple[PolicyResult, ...]
    copy_first: MetricCurves
    lpips_label: str
    horizon: int
    windows: int
    samples: int

    def rows(self, edge: int = 10) -> list[dict[str, float | int | str]]:
        """One flat row per policy, then the baseline, for tables and JSON files."""
        rows: list[dict[str, float | int | str]] = []
        for policy in self.policies:
            row: dict[str, float | int | str] = {"policy": policy.name, **_figures(policy.metrics, edge)}
            row |= {
                "seconds": policy.seconds,
                "ms_per_frame": 1e3 * float(policy.seconds_per_frame.mean()),
                "peak_sequence": policy.peak_sequence,
                "cache_bytes": policy.cache_bytes,
            }
            if policy.fvd is not None:
                row["fvd"] = policy.fvd
            rows.append(row)
        rows.append({"policy": "copy first frame", **_figures(self.copy_first, edge)})
        return rows


def _figures(metrics: MetricCurves, edge: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in (*FRAME_METRICS, *CLIP_METRICS):
        total = metrics.total(name)
        figures |= {name: total.mean, f"{name}_low": total.low, f"{name}_high": total.high}
    for name in ("psnr", "ssim", "lpips"):
        figures[f"{name}_first"] = metrics.first(name, edge).mean
        figures[f"{name}_last"] = metrics.last(name, edge).mean
    return figures
