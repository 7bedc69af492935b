"""Figures and contact sheets: against the episodes that went in, and against the pixels that came out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from episode_files import write_droid
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.inspect import contact_sheet, picture_change, spread, state_speed, store_figures
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.episodes import app


def episode(number: int = 0, length: int = 9, views: int = 1) -> Episode:
    """Red above blue, getting brighter from frame to frame."""
    frames = np.zeros((length, 32, 32, 3), np.uint8)
    brightness = (95 + 160 * np.arange(length) / (length - 1)).astype(np.uint8)
    frames[:, :16, :, 0] = brightness[:, None, None]
    frames[:, 16:, :, 2] = brightness[:, None, None]
    rng = np.random.default_rng(number)
    return Episode(
        episode_id=f"test/{number}",
        group_id=f"test/{number}",
        frames={f"view_{view}": frames for view in range(views)},
        actions=rng.normal(size=(length, 3)).astype(np.float32),
        action_names=("delta_x [m]", "delta_roll [rad]", "gripper"),
        action_kinds=("delta", "delta_angle", "hold"),
        state=rng.normal(size=(length, 3)).astype(np.float32),
        instruction="push the [red] block",
        fps=10.0,
        embodiment="arm",
        outcome=Outcome(success=bool(number % 2)),
    )


@given(st.integers(1, 300), st.integers(1, 40))
def test_spread_is_even_and_holds_both_ends(count, wanted):
    positions = spread(count, wanted)
    assert len(positions) == min(count, wanted)
    assert positions == sorted(set(positions))
    assert positions[0] == 0
    assert positions[-1] == count - 1 or wanted == 1
    steps = np.diff(positions)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_picture_change_is_the_mean_absolute_difference():
    frames = np.random.default_rng(0).integers(0, 255, (6, 20, 24, 3), dtype=np.uint8)
    change = picture_change(frames)
    for t in range(5):
        assert change[t] == pytest.approx(np.abs(frames[t + 1].astype(float) - frames[t]).mean())
    assert change[5] == 0


def test_a_wrapped_angle_is_no_speed():
    turning = episode(length=40)
    angle = np.pi - 0.2 + 0.01 * np.arange(40)
    state = np.zeros((40, 3), np.float32)
    state[:, 1] = (angle + np.pi) % (2 * np.pi) - np.pi
    state[:, 2] = np.sin(np.arange(40))
    smooth, wrapped = state.copy(), state
    smooth[:, 1] = angle
    plain, jumping = (state_speed(replace(turning, state=values)) for values in (smooth, wrapped))
    assert np.allclose(plain, jumping, rtol=1e-2)


def test_figures_are_those_of_the_episodes_written(tmp_path):
    episodes = [episode(number, length) for number, length in enumerate((9, 12, 15, 9))]
    items: list[Episode | Quarantined] = [*episodes, Quarantined("test/9", "no such video file")]
    write_store(items, tmp_path / "store", held_out_fraction=0.5)
    figures = store_figures(open_store(tmp_path / "store"))
    assert (figures["episodes"], figures["frames"]) == (4, 45)
    assert figures["hours"] == pytest.approx(45 / 10 / 3600)
    assert figures["fps"] == {"10": 4}
    assert figures["embodiments"] == {"arm": 4}
    assert figures["success"] == {"true": 2, "false": 2}
    assert sum(figures["splits"].values()) == 4
    write_store(episodes, tmp_path / "all", held_out_fraction=1e-9)
    assert store_figures(open_store(tmp_path / "all"))["splits"] == {"train": 4, "held_out": 0}
    assert figures["quarantined"] == [{"episode_id": "test/9", "reason": "no such video file"}]
    store = open_store(tmp_path / "store")
    train = np.concatenate([episodes[position].actions for position in store.split("train")])
    assert np.allclose(figures["actions"]["3"]["p01"], np.percentile(train, 1, axis=0), atol=1e-6)
    assert np.allclose(figures["actions"]["3"]["p99"], np.percentile(train, 99, axis=0), atol=1e-6)


def test_pictures_stand_upright_in_order_above_their_moments(tmp_path):
    path = contact_sheet([episode(length=9)], tmp_path / "sheet.png", columns=5)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red, blue = pixels[..., 0], pixels[..., 2]
    top = (red > 80) & (pixels[..., 1] < 12) & (blue < 12)
    bottom = (blue > 80) & (pixels[..., 1] < 12) & (red < 12)
    assert np.argwhere(top)[:, 0].mean() < np.argwhere(bottom)[:, 0].mean()  # upright
    row = int(np.median(np.argwhere(top)[:, 0]))
    columns = np.flatnonzero(top[row])
    strip = red[row, columns[0] : columns[-1] + 1]
    brightness = [float(np.median(part)) for part in np.array_split(strip, 5)]
    expected = 95 + 160 * np.array([0, 2, 4, 6, 8]) / 8
    assert np.allclose(brightness, expected, atol=4)  # frames 0, 2, 4, 6, 8 from left to right
    # The line that marks a picture's moment in the traces stands below the picture's centre.
    width = (columns[-1] + 1 - columns[0]) / 5
    centres = columns[0] + width * (np.arange(5) + 0.5)
    below = pixels[np.argwhere(bottom)[:, 0].max() + 10 :]
    grey = (np.abs(below - 217).max(axis=2) < 8).sum(axis=0)
    marks = np.flatnonzero(grey > 0.4 * grey.max())
    assert all(np.abs(marks - centre).min() <= 2 for centre in centres)


def test_more_episodes_and_views_make_a_taller_sheet(tmp_path):
    def height(*episodes: Episode) -> int:
        return Image.open(contact_sheet(episodes, tmp_path / "sheet.png", columns=4)).height

    one = height(episode())
    assert height(episode(), episode(1)) == pytest.approx(2 * one, abs=4)
    assert height(episode(views=3)) > one + 100


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no episode to show"):
        contact_sheet([], tmp_path / "sheet.png")


def test_convert_then_inspect_on_the_command_line(tmp_path):
    write_droid(tmp_path / "set", [6, 8])
    (tmp_path / "set" / "videos/train/1/0.mp4").unlink()
    arguments = ["convert", str(tmp_path / "set"), str(tmp_path / "store"), "--stride", "2", "--json", "-q"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["episodes"], report["frames"]) == (1, 3)
    assert report["quarantined"][0]["reason"] == "videos/train/1/0.mp4: no such video file"
    sheet = tmp_path / "sheet.png"
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "store"), "--out", str(sheet)])
    assert shown.exit_code == 0, shown.output
    assert "exterior_2 32x48" in shown.output
    assert "delta_yaw [rad]" in shown.output
    assert "no such video file" in shown.output
    assert Image.open(sheet).format == "PNG"
