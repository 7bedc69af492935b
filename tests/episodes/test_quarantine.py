"""One bad episode costs that episode: it is set aside by name, the rest is the same as without it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_files import CAMERA, clip, write_droid, write_lerobot_v2, write_mp4

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.droid import DroidSource
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert

LEROBOT_VIDEO = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
LEROBOT_DATA = "data/chunk-000/episode_000001.parquet"


def _garbage(path):
    path.write_bytes(b"\x00\x01 no such format" * 40)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _delete(path):
    path.unlink()


def _nan_action(path):
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist())
    actions[2, 1] = np.nan
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", pa.array(actions.tolist())), path)


def _too_few_frames(path):
    write_mp4(path, clip(4), 10)


def _too_few_rows(path):
    pq.write_table(pq.read_table(path).slice(0, 3), path)


def _no_action(path):
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


LEROBOT_FAULTS = [
    (LEROBOT_VIDEO, _garbage, "cannot be decoded"),
    (LEROBOT_VIDEO, _truncate, ""),
    (LEROBOT_VIDEO, _delete, "no such video file"),
    (LEROBOT_VIDEO, _too_few_frames, "4 frames for 6 rows"),
    (LEROBOT_DATA, _garbage, "Parquet file cannot be read"),
    (LEROBOT_DATA, _truncate, "Parquet file cannot be read"),
    (LEROBOT_DATA, _delete, "no such data file"),
    (LEROBOT_DATA, _nan_action, "'action' holds nan at row 2, dimension 1"),
    (LEROBOT_DATA, _too_few_rows, "3 rows, the episode table says 6"),
    (LEROBOT_DATA, _no_action, "column 'action'"),
]


@pytest.mark.parametrize(
    ("file", "damage", "clue"), LEROBOT_FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_lerobot(tmp_path, file, damage, clue):
    write_lerobot_v2(tmp_path, [6, 6, 6])
    damage(tmp_path / file)
    first, second, third = LeRobotSource(tmp_path).episodes()
    assert isinstance(first, Episode)
    assert isinstance(third, Episode)
    assert isinstance(second, Quarantined)
    assert second.episode_id.endswith("/000001")
    assert second.reason.startswith(file)
    assert clue in second.reason
    assert "\n" not in second.reason


def _annotation(change):
    def damage(path):
        annotation = json.loads(path.read_text())
        change(annotation)
        path.write_text(json.dumps(annotation))

    damage.__name__ = change.__name__
    return damage


def _nan_state(annotation):
    annotation["states"][3][5] = float("nan")


def _short_state_rows(annotation):
    annotation["states"] = [row[:6] for row in annotation["states"]]


def _ragged_states(annotation):
    annotation["states"][1] = [0.0]


def _no_states(annotation):
    del annotation["states"]


def _no_videos(annotation):
    annotation["videos"].clear()


def _one_video_twice(annotation):
    annotation["videos"][1] = annotation["videos"][0]


DROID_FAULTS = [
    ("annotation/train/1.json", _truncate, "cannot be read as a DROID annotation"),
    ("annotation/train/1.json", _annotation(_nan_state), "state 3 holds nan in dimension 5"),
    ("annotation/train/1.json", _annotation(_short_state_rows), "states have shape (6, 6)"),
    ("annotation/train/1.json", _annotation(_ragged_states), "no table of numbers"),
    ("annotation/train/1.json", _annotation(_no_states), "states: Field required"),
    ("annotation/train/1.json", _annotation(_no_videos), "at least 1 item"),
    ("annotation/train/1.json", _annotation(_one_video_twice), "the same video twice"),
    ("videos/train/1/2.mp4", _delete, "no such video file"),
    ("videos/train/1/1.mp4", _garbage, "cannot be decoded"),
]


@pytest.mark.parametrize(
    ("file", "damage", "clue"), DROID_FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_droid(tmp_path, file, damage, clue):
    write_droid(tmp_path, [6, 6, 6])
    damage(tmp_path / file)
    first, second, third = DroidSource(tmp_path).episodes()
    assert isinstance(first, Episode)
    assert isinstance(third, Episode)
    assert isinstance(second, Quarantined)
    assert second.reason.startswith(file)
    assert clue in second.reason


def test_the_store_holds_the_good_ones_and_lists_the_others(tmp_path):
    write_lerobot_v2(tmp_path / "set", [6, 6, 6])
    _delete(tmp_path / "set" / LEROBOT_VIDEO)
    summary = convert(tmp_path / "set", tmp_path / "store", ConvertOptions(height=16, width=24))
    assert (summary.episodes, len(summary.quarantined)) == (2, 1)
    store = open_store(tmp_path / "store")
    assert store.ids == ["set/000000", "set/000002"]
    (listed,) = json.loads((tmp_path / "store" / "quarantine.json").read_text())
    assert listed["episode_id"] == "set/000001"
    assert LEROBOT_VIDEO in listed["reason"]


def test_nothing_usable_is_an_error_and_leaves_nothing_behind(tmp_path):
    write_lerobot_v2(tmp_path / "set", [6])
    _delete(tmp_path / "set" / "data/chunk-000/episode_000000.parquet")
    with pytest.raises(UserError, match=r"no usable episode.*episode_000000"):
        convert(tmp_path / "set", tmp_path / "store", ConvertOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_rate_that_does_not_divide_is_a_reason(tmp_path):
    write_lerobot_v2(tmp_path / "set", [6])
    with pytest.raises(UserError, match="4 Hz does not divide its 10 Hz"):
        convert(tmp_path / "set", tmp_path / "store", ConvertOptions(fps=4.0))
