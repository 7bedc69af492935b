"""A page of a run that is not a comparison of two models: tables, charts and videos in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.evaluation.plots import Series, line_chart
from roboalign_ray.evaluation.report.data import Change, Table
from roboalign_ray.evaluation.report.html import flatten, render_template, sections, table_view
from roboalign_ray.evaluation.report.tiles import GAP_GREY, frames_uri
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.telemetry.progress import seconds


@dataclass(frozen=True)
class PageVideo:
    """Clips side by side.

    Attributes:
        title, caption: above it.
        panels: label to uint8 [T, H, W, 3], all of one shape.
    """

    title: str
    caption: str
    panels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PageChart:
    """Curves over a common axis; a series' label stands in the legend."""

    title: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Page:
    """What the page shows; empty parts are left out.

    Attributes:
        title, headline, sentence, subject: at the top; `kind` colours the headline.
        tables, charts, videos: in this order.
        fps: of the videos.
        command, facts: how to make it again, and single values.
        settings: the resolved config as a tree of plain values.
        duration_s: of the run.
        created: when.
    """

    title: str
    headline: str
    sentence: str
    subject: str
    kind: Change
    command: str
    created: str
    duration_s: float
    fps: float = 5.0
    tables: Sequence[Table] = ()
    charts: Sequence[PageChart] = ()
    videos: Sequence[PageVideo] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_page(page: Page, path: Path) -> Path:
    """Render the page into one file without external requests, and write it as a whole.

    Returns:
        The path written.

    Raises:
        ValueError: panels of a video differ in shape.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        draft.write_text(render_page(page), encoding="utf-8")
    return path


def render_page(page: Page) -> str:
    """The whole page."""
    from markupsafe import Markup

    return render_template(
        "page.html.j2",
        page=page,
        tables=[table_view(table) for table in page.tables],
        charts=[
            {
                "title": chart.title,
                "legend": [(series.label, series.key) for series in chart.series],
                "chart": Markup(line_chart(chart.series, description=chart.title)),
            }
            for chart in page.charts
        ],
        videos=[
            {"of": video, "uri": Markup(frames_uri(side_by_side(video.panels), page.fps))}
            for video in page.videos
        ],
        facts={**page.facts, "Took": seconds(page.duration_s)},
        settings=[(name, flatten(value)) for name, value in sections(page.settings)],
    )


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Clips in one, uint8 [T, H, n W + n - 1, 3], with dark columns between them.

    Raises:
        ValueError: they differ in shape.
    """
    first, *others = panels.values()
    gap = np.full_like(first[:, :, :1], GAP_GREY)
    parts = [first]
    for other in others:
        if other.shape != first.shape:
            raise ValueError(f"panels of shapes {first.shape} and {other.shape}")
        parts += [gap, other]
    return np.concatenate(parts, axis=2)
