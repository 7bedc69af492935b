"""Writes the report as one HTML file that makes no external requests and has a light and a dark mode.

The page's content policy forbids every external source, so a mistake in the template shows as a missing part and
never causes a request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.evaluation.plots import Series, interval_bar, line_chart
from roboalign_ray.evaluation.report.data import Comparison, JudgedSection, ReportData, Table
from roboalign_ray.evaluation.report.tiles import frames_uri, video_uri
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.telemetry.progress import seconds
from roboalign_ray.judge.rubric import DIMENSIONS

_METRIC_TITLES = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "roi_lpips": "ROI-LPIPS ↓",
    "mse": "MSE ↓",
}
_ACRONYMS = frozenset({"kl", "lpips", "ssim", "psnr", "mse", "fvd", "roi-lpips", "lr"})
# key of a row, heading, digits, which direction is best: +1, -1, or 0 where there is no best
_POLICY_COLUMNS: tuple[tuple[str, str, int, int], ...] = (
    ("psnr", "PSNR ↑", 2, 1),
    ("psnr_first", "first 10", 2, 1),
    ("psnr_last", "last 10", 2, 1),
    ("ssim", "SSIM ↑", 4, 1),
    ("lpips", "LPIPS ↓", 4, -1),
    ("roi_lpips", "ROI-LPIPS ↓", 4, -1),
    ("freeze_rate", "Frozen ↓", 3, -1),
    ("motion", "Motion", 3, 0),
    ("fvd", "FVD ↓", 0, -1),
    ("ms_per_frame", "ms a frame", 1, -1),
    ("peak_sequence", "Peak tokens", 0, -1),
    ("cache_bytes", "Cache, MB", 1, -1),
)


def write_report(data: ReportData, path: str | Path) -> Path:
    """Render the report and write it atomically, so that a reader never sees an incomplete file.

    Returns:
        The path written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as draft:
        draft.write_text(render(data), encoding="utf-8")
    return target


def render(data: ReportData) -> str:
    """The whole page."""
    from markupsafe import Markup

    kind, headline, sentence = data.verdict()
    common = _common_prefix(data.learning_curves)
    return render_template(
        "template.html.j2",
        data=data,
        verdict={"kind": kind, "headline": headline, "sentence": sentence},
        duration=seconds(data.seconds),
        comparisons=[_comparison_view(one, _reach(data.comparisons)) for one in data.comparisons],
        reach=f"{_reach(data.comparisons):g}",
        videos=[{"clip": clip, "uri": Markup(video_uri(clip, data.fps))} for clip in data.clips],
        learning=[_learning_view(name, *curve, common) for name, curve in data.learning_curves.items()],
        frames=[_frames_view(name, curves, data) for name, curves in data.frame_curves.items()],
        policy_frames=[_frames_view(name, curves, data) for name, curves in data.policy_curves.items()],
        legend=_legend(data.frame_curves),
        policy_legend=_legend(data.policy_curves),
        policies=_policy_view(data.policies),
        tables=[table_view(table) for table in data.tables],
        judged=_judged_view(data.judged, data.fps) if data.judged else None,
        dimensions=[*(dimension.title for dimension in DIMENSIONS), "Total"],
        settings=[(name, flatten(value)) for name, value in sections(data.settings)],
    )


def render_template(name: str, **values: Any) -> str:
    """A page of one of this package's templates, which also gets the style sheet and the script."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def text(part: str) -> str:
        return (files("roboalign_ray.evaluation.report") / part).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    page = environment.get_template(name)
    return page.render(style=Markup(text("style.css")), script=Markup(text("script.js")), **values)


def number(value: float | int | str, digits: int | None = None) -> str:
    """A cell's text: "–" if undefined, fixed decimals if given, else four significant digits."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–"
    if digits is None:
        text = str(value) if isinstance(value, int) or value == 0 else f"{value:#.4g}".removesuffix(".")
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", "−") if text.startswith("-") else text


def signed(value: float, digits: int) -> str:
    """A change, always with its sign."""
    return ("+" if value >= 0 else "") + number(value, digits) if math.isfinite(value) else "–"


def _comparison_view(comparison: Comparison, reach: float) -> dict[str, Any]:
    from markupsafe import Markup

    mean, low, high = comparison.gain()
    words = {"better": "better", "worse": "worse", "unclear": "no clear change"}
    return {
        "of": comparison,
        "kind": comparison.verdict,
        "word": words[comparison.verdict],
        "arrow": "↓" if comparison.lower_is_better else "↑",
        "by": f" by {abs(mean):.1f} %" if math.isfinite(mean) and comparison.verdict != "unclear" else "",
        "change": signed(comparison.change.difference.mean, comparison.digits),
        "bar": Markup(interval_bar(mean, low, high, reach, comparison.verdict)),
        "wins": f"{100 * comparison.change.wins:.0f} %" if math.isfinite(comparison.change.wins) else "–",
    }


def _reach(comparisons: Sequence[Comparison]) -> float:
    """Half the length of the gain bars' axis, in per cent: it fits the median metric; outliers are clipped."""
    means = [abs(comparison.gain()[0]) for comparison in comparisons]
    finite = [mean for mean in means if math.isfinite(mean) and mean > 0]
    if not finite:
        return 1.0
    wanted = 2.5 * float(np.median(finite))
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= wanted)


def _learning_view(name: str, steps: np.ndarray, values: np.ndarray, common: str) -> dict[str, Any]:
    from markupsafe import Markup

    title = curve_title(name, common)
    finite = values[np.isfinite(values)]
    series = [Series(title, "after", steps, values)]
    if len(values) >= 12:
        series.insert(0, Series(title, "faint", steps, values))
        series[1] = Series(f"{title}, smoothed", "after", steps, _smooth(values))
    chart = line_chart(series, description=f"{title} over updates", height=150)
    ends = (finite[0], finite[-1]) if finite.size else (math.nan, math.nan)
    return {"title": title, "first": ends[0], "last": ends[1], "chart": Markup(chart)}


def curve_title(name: str, common: str = "") -> str:
    """ "eval/roi_lpips" as "Eval ROI-LPIPS"; the prefix that most curves share is left out."""
    words = (
        name.removeprefix(common)
        .replace("/", " ")
        .replace("roi_lpips", "roi-lpips")
        .replace("_", " ")
        .split()
    )
    words = [word.upper() if word in _ACRONYMS else word for word in words] or [name]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def _common_prefix(names: Iterable[str]) -> str:
    known = list(names)
    prefixes = Counter(name.split("/")[0] + "/" for name in known if "/" in name)
    return next((prefix for prefix, count in prefixes.most_common(1) if 2 * count > len(known)), "")


def _smooth(values: np.ndarray, window: int = 7) -> np.ndarray:
    """Centred running mean of the finite values; the window is shorter at the ends."""
    half = window // 2
    pieces = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return np.array([np.mean(p[np.isfinite(p)]) if np.isfinite(p).any() else np.nan for p in pieces])


def _series_key(label: str, index: int) -> str:
    if label in ("before", "after"):
        return label
    return "baseline" if label.startswith("copy") else f"p{index % 7}"


def _frames_view(metric: str, curves: Mapping[str, np.ndarray], data: ReportData) -> dict[str, Any]:
    from markupsafe import Markup

    series = []
    for index, (label, values) in enumerate(curves.items()):
        key = _series_key(label, index)
        frames = np.arange(1, len(values) + 1)
        series.append(Series(label, key, frames, np.asarray(values, float), dashed=key == "baseline"))
    series.sort(key=lambda one: (one.key == "after", one.key == "before"))
    marker = (data.training_frames - 1, "training window") if data.training_frames else None
    metric, _, view = metric.partition("/")
    title = _METRIC_TITLES.get(metric, metric) + (f", {view}" if view else "")
    chart = line_chart(series, marker=marker, description=f"{title} per predicted frame")
    return {"title": title, "chart": Markup(chart)}


def _legend(groups: Mapping[str, Mapping[str, np.ndarray]]) -> list[tuple[str, str]]:
    labels = next(iter(groups.values()), {})
    return [(label, _series_key(label, index)) for index, label in enumerate(labels)]


def _policy_view(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns that occur in any row. The best value of each is marked, without the copying baselines."""
    columns = [column for column in _POLICY_COLUMNS if any(column[0] in row for row in rows)]
    best = {}
    for key, _, _, direction in columns:
        compared = [row.get(key, math.nan) for row in rows if not str(row["policy"]).startswith("copy")]
        values = [value for value in compared if math.isfinite(value)]
        if direction and len(values) > 1 and min(values) < max(values):
            best[key] = max(values) if direction > 0 else min(values)
    body = [
        {"name": row["policy"], "cells": [_policy_cell(row, column, best) for column in columns]}
        for row in rows
    ]
    return {"columns": [heading for _, heading, _, _ in columns], "rows": body}


def _policy_cell(
    row: Mapping[str, Any], column: tuple[str, str, int, int], best: Mapping[str, float]
) -> dict:
    key, _, digits, _ = column
    value = row.get(key, math.nan)
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    spread = max(value - low, high - value)
    return {
        "text": number(value / 1e6 if key == "cache_bytes" else value, digits),
        "raw": value,
        "best": best.get(key) == value,
        "spread": f"±{spread:.{digits}f}" if math.isfinite(spread) else "",
    }


def table_view(table: Table) -> dict[str, Any]:
    """A table for the macro `plain_table`."""
    digits = table.digits or [None] * len(table.columns)
    rows = [
        [
            (number(cell, places), cell, isinstance(cell, str))
            for cell, places in zip(row, digits, strict=True)
        ]
        for row in table.rows
    ]
    return {"title": table.title, "note": table.note, "columns": table.columns, "rows": rows}


def _judged_view(section: JudgedSection, fps: float) -> dict[str, Any]:
    from markupsafe import Markup

    charts = []
    for title, curves in section.drift.items():
        keys = {"student": "before", "teacher": "after"}
        series = [
            Series(label, keys.get(label, f"p{number % 7}"), steps, values)
            for number, (label, (steps, values)) in enumerate(curves.items())
        ]
        charts.append(
            {"title": title, "chart": Markup(line_chart(series, description=f"{title} over updates"))}
        )
    clips = [
        {
            "of": clip,
            "uri": Markup(frames_uri(clip.frames, fps)),
            "rows": [(judge, [number(float(value), 2) for value in scores]) for judge, scores in clip.scores],
        }
        for clip in section.clips
    ]
    legend = [("student", "before"), ("teacher", "after")]
    return {"table": table_view(section.table), "charts": charts, "legend": legend, "clips": clips}


def sections(settings: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The sections of the settings; top-level values come first, under "job"."""
    loose = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    nested = [(key, value) for key, value in settings.items() if isinstance(value, Mapping)]
    return ([("job", loose)] if loose else []) + nested


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and values as texts."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((prefix + key, ", ".join(map(str, value)) or "–"))
        else:
            rows.append((prefix + key, "–" if value is None or value == "" or value == {} else str(value)))
    return rows
