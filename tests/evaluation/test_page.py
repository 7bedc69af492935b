"""Pages of runs: everything that was given is on them, safely, and nothing is fetched."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from roboalign_ray.episodes.video import decode_video
from roboalign_ray.evaluation.plots import Series
from roboalign_ray.evaluation.report.data import Table
from roboalign_ray.evaluation.report.page import Page, PageChart, PageVideo, side_by_side, write_page


def clip(grey: int) -> np.ndarray:
    return np.full((5, 32, 32, 3), grey, np.uint8)


def page(**changes) -> Page:
    plans = np.arange(1, 4)
    fields = {
        "title": "Agent <x>",
        "headline": "2 of 3",
        "sentence": "It went well & ended.",
        "subject": "A model.",
        "kind": "unclear",
        "command": "roboalign agent run a",
        "created": "today",
        "duration_s": 75.0,
        "tables": [Table("Rates", ["row", "task"], [["nothing", 0.25], ["expert", "all"]], "A note.")],
        "charts": [PageChart("Cost", [Series("predicted", "before", plans, plans / 3)])],
        "videos": [PageVideo("start 7", "solved", {"outcome": clip(40), "plan": clip(200)})],
        "facts": {"Seed": "3"},
        "settings": {"name": "x", "agent": {"horizon": 5}},
    }
    return Page(**{**fields, **changes})


def test_what_is_given_is_there_once_and_escaped(tmp_path) -> None:
    text = write_page(page(), tmp_path / "deep/agent.html").read_text("utf-8")
    for part in (
        "2 of 3",
        "Agent &lt;x&gt;",
        "well &amp; ended",
        "0.2500",
        "A note.",
        "1 min 15 s",
        "predicted",
    ):
        assert part in text, part
    assert "<x>" not in text
    assert "roboalign agent run a" in text
    assert not re.search(r"(?:src|href)=[\"']?https?:", text)
    assert "default-src 'none'" in text


def test_panels_stand_side_by_side_in_their_order(tmp_path) -> None:
    text = write_page(page(), tmp_path / "agent.html").read_text("utf-8")
    [encoded] = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", text)
    frames = decode_video(base64.b64decode(encoded))
    half = frames.shape[2] // 2
    assert len(frames) == 5
    assert abs(frames[:, :, : half - 8].mean() - 40) < 6
    assert abs(frames[:, :, half + 8 :].mean() - 200) < 6
    assert text.index("<span>outcome</span>") < text.index("<span>plan</span>")


def test_empty_parts_are_left_out(tmp_path) -> None:
    empty = page(tables=(), charts=(), videos=(), settings={})
    text = write_page(empty, tmp_path / "agent.html").read_text("utf-8")
    assert "<table" not in text
    assert "<video " not in text
    assert 'id="settings"' not in text


def test_panels_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="panels"):
        side_by_side({"a": clip(1), "b": clip(1)[:3]})
