"""A page about the scores of many clips: how they are spread, the best and the worst clips, and what has no score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.evaluation.plots import histogram_bars
from roboalign_ray.evaluation.report.data import Table
from roboalign_ray.evaluation.report.html import render_template, table_view
from roboalign_ray.evaluation.report.tiles import frames_uri
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.judge.rubric import DIMENSIONS


@dataclass(frozen=True)
class ScoredClip:
    """A clip on the page.

    Attributes:
        clip_id, instruction, judge, rationale: as in its row of scores; the rationale is "" if there is none.
        scores: its six scores and the total.
        frames: uint8 [T, H, W, 3]; None if it cannot be shown.
        fps: frames per second.
        missing: why it cannot be shown.
    """

    clip_id: str
    instruction: str
    judge: str
    rationale: str
    scores: Sequence[float]
    frames: np.ndarray | None
    fps: float = 6.0
    missing: str = ""


@dataclass(frozen=True)
class ScoresPage:
    """Everything that the page shows.

    Attributes:
        title, headline, sentence, subject, created: the head of the page.
        histograms: by dimension and for "total": edges and counts, as in a data card.
        means: by the same names; None where there is no score.
        groups: title -> clips.
        quarantine: (reason, number of clips, an example), the most frequent first.
    """

    title: str
    headline: str
    sentence: str
    subject: str
    created: str
    histograms: Mapping[str, Mapping[str, Sequence[Any]]]
    means: Mapping[str, float | None]
    groups: Mapping[str, Sequence[ScoredClip]] = field(default_factory=dict)
    quarantine: Sequence[tuple[str, int, str]] = ()


def write_scores_page(data: ScoresPage, path: Path) -> Path:
    """Write the page atomically, and return its path."""
    with whole_file(path) as draft:
        draft.write_text(render_scores(data), encoding="utf-8")
    return path


def render_scores(data: ScoresPage) -> str:
    """The whole page."""
    from markupsafe import Markup

    titles = {**{dimension.name: dimension.title for dimension in DIMENSIONS}, "total": "Total"}
    histograms = [
        (
            title,
            float("nan") if (mean := data.means[name]) is None else mean,
            Markup(histogram_bars(**data.histograms[name], description=f"Histogram of {title.lower()}")),
        )
        for name, title in titles.items()
    ]
    table = Table("", ("Reason", "Clips", "Example"), data.quarantine, digits=(None, 0, None))
    return render_template(
        "scores.html.j2",
        data=data,
        histograms=histograms,
        dimensions=list(titles.values()),
        groups=[(title, [_view(clip) for clip in clips]) for title, clips in data.groups.items() if clips],
        quarantine=table_view(table) if data.quarantine else None,
    )


def _view(clip: ScoredClip) -> dict[str, Any]:
    from markupsafe import Markup

    uri = "" if clip.frames is None else Markup(frames_uri(clip.frames, clip.fps))
    return {"of": clip, "uri": uri}
