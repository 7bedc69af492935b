"""The result of the persistence experiment: figures as JSON, tables as Markdown, one page with curves and videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from roboalign_ray.evaluation.pairs import COMPARED, paired
from roboalign_ray.evaluation.report.assemble import (
    Shown,
    compare,
    episode_clips,
    frame_curves,
    method_table,
    paired_table,
)
from roboalign_ray.evaluation.report.data import ReportData, Table
from roboalign_ray.evaluation.report.html import number, write_report
from roboalign_ray.evaluation.results import CLIP_METRICS, MetricCurves
from roboalign_ray.foundation.telemetry.metrics import read_curves
from roboalign_ray.metrics.frame_metrics import FRAME_METRICS
from roboalign_ray.pipelines.align.job import LOGS
from roboalign_ray.pipelines.evaluate.job import Bench
from roboalign_ray.pipelines.evaluate.report_parts import learning_curves, origin_of, titles_of

Runs = Mapping[str, Sequence[MetricCurves]]  # by method: base, the arms, and the baseline of doing nothing


def rivals(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Which methods are compared: (rival, method).

    The base against doing nothing, every arm against the base, and the last arm against each other one.
    """
    base, *arms, still = methods
    pairs = [(still, base), *((base, arm) for arm in arms)]
    return pairs + [(other, arms[-1]) for other in arms[:-1]]


def means_of(runs: Runs) -> dict[str, MetricCurves]:
    """One value per window and frame for each method: the mean over its seeds."""
    return {name: MetricCurves.averaged(curves) for name, curves in runs.items()}


def as_json(bench: Bench, runs: Runs, terms: Mapping[str, int]) -> dict[str, Any]:
    """All figures: per run, view and window; curves per frame; paired comparisons of the means over seeds.

    Args:
        terms: what every arm was given.
    """
    means = means_of(runs)
    return {
        **terms,
        "windows": [window.prompt.prompt_id for window in bench.windows],
        "horizon": bench.windows[0].prompt.horizon,
        "training_horizon": bench.config.rollout.horizon,
        "lpips": bench.lpips.label,
        "methods": {name: [_run_json(curves) for curves in found] for name, found in runs.items()},
        "pairs": [
            {"rival": rival, "method": method, "views": _pair_json(means[rival], means[method])}
            | {"per_seed": [_pair_json(means[rival], curves) for curves in runs[method]]}
            for rival, method in rivals(list(runs))
        ],
    }


def _run_json(curves: MetricCurves) -> dict[str, Any]:
    """View -> mean, per window and per frame; "mean" is over views. Where a metric is undefined stands null."""
    every = (*FRAME_METRICS, *CLIP_METRICS)
    return {
        view: {
            "mean": dict(zip(every, _plain([one.total(name).mean for name in every]), strict=True)),
            "per_window": {name: _plain(one.per_episode(name)) for name in every},
            "per_frame": {name: _plain(one.curve(name)) for name in FRAME_METRICS},
        }
        for view, one in _named_views(curves)
    }


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(value) if isfinite(value) else None for value in values]


def _pair_json(rival: MetricCurves, method: MetricCurves) -> dict[str, Any]:
    return {
        view: {name: paired(before, after, name).as_json() for name in COMPARED}
        | {
            name: {"rival": before.total(name).mean, "method": after.total(name).mean}
            for name in CLIP_METRICS
        }
        for (view, before), (_, after) in zip(_named_views(rival), _named_views(method), strict=True)
    }


def _named_views(curves: MetricCurves) -> list[tuple[str, MetricCurves]]:
    return [("mean", curves), *curves.views.items()]


def tables_of(runs: Runs) -> list[Table]:
    """All methods, and who wins against whom; means over seeds."""
    means = means_of(runs)
    pairs = {
        f"{method} against {rival}": (means[rival], means[method]) for rival, method in rivals(list(runs))
    }
    seeds = len(list(runs.values())[1])
    each = f"Each arm's figure of a window is the mean over {seeds} seeds." if seeds > 1 else ""
    note = (
        "The sign test is exact, two-sided and over windows; those that tie take no part. "
        "Frozen and motion are those of the rival and of the method."
    )
    return [
        method_table(means, "All methods, view by view", each),
        paired_table(pairs, "Windows won, view by view", f"{each} {note}".strip()),
    ]


def written(runs: Runs) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for table in tables_of(runs):
        digits = table.digits or [None] * len(table.columns)
        lines += [
            f"## {table.title}",
            "",
            f"| {' | '.join(table.columns)} |",
            "|---" * len(table.columns) + "|",
        ]
        lines += [
            f"| {' | '.join(number(cell, places) for cell, places in zip(row, digits, strict=True))} |"
            for row in table.rows
        ]
        lines += ["", table.note, ""] if table.note else [""]
    return "\n".join(lines)


def write_page(
    bench: Bench,
    runs: Runs,
    first: Mapping[str, Shown],
    terms: Mapping[str, int],
    reinforced: Path,
    path: Path,
    command: Sequence[str],
    began: float,
) -> None:
    """The page: the last arm against the base first, then all methods, frame by frame, and side by side.

    Args:
        first: by method, a result with frames: the base, and each arm's first seed.
        reinforced: run folder of the last arm's first seed, for its learning curves.
        command, began: as `origin_of`.
    """
    means = means_of(runs)
    base, *arms, _ = means
    settings, card = bench.config, bench.decoder.card
    resamples = settings.evaluation.bootstrap_resamples
    data = ReportData(
        title="Persistence: training on real frames, on own frames, and on rewards of own frames",
        subject=(
            f"A {card.kind} world model of {card.views} views at {card.height}×{card.width}, post-trained in "
            f"{len(arms)} ways with {terms['optimizer_steps']} optimizer steps of {terms['clips_per_step']} clips, "
            f"on rollouts or windows of up to {settings.rollout.horizon} frames."
        ),
        comparisons=compare(means[base], means[arms[-1]], resamples=resamples),
        episodes=len(bench.windows),
        horizon=means[base].horizon,
        **origin_of(bench, command, began),
        learning_curves=learning_curves(read_curves(reinforced / LOGS)),
        frame_curves=frame_curves(means),
        training_frames=settings.rollout.horizon + 1,
        tables=tables_of(runs),
        clips=episode_clips(bench.windows, first, titles_of(bench)),
        notes=[
            f"Before is the {base}, after is {arms[-1]}, as a mean over seeds.",
            "The dotted line marks the longest rollout in training.",
            "Videos show the first seed.",
        ],
    )
    write_report(data, path)
