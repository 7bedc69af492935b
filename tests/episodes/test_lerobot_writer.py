"""A written LeRobot v3.0 dataset is read back by this project's reader and, table by table, by pandas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from made_episodes import made_episode

from roboalign_ray.episodes.action_kinds import ActionKind
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.lerobot_writer import write_lerobot
from roboalign_ray.episodes.sources.folder import open_folder
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.foundation.failures import UserError


def moving(task: int, start: int, length: int, size: int = 32) -> Episode:
    """A bright square that moves one pixel a frame, in two views."""
    made = made_episode(task, start, length=length, size=size)
    frames = np.full((length, size, size, 3), 40, np.uint8)
    for t in range(length):
        frames[t, 8:16, 4 + t : 12 + t] = (200, 90, 30)
    return replace(made, frames={"front": frames, "wrist": np.ascontiguousarray(frames[:, ::-1])})


@pytest.fixture
def episodes() -> list[Episode]:
    return [moving(task, start, length) for task, start, length in ((0, 1, 9), (1, 2, 12), (0, 3, 7))]


@pytest.fixture
def dataset(episodes: list[Episode], tmp_path: Path) -> Path:
    write_lerobot(episodes, tmp_path / "made")
    return tmp_path / "made"


def test_the_reader_gives_back_what_was_written(episodes: list[Episode], dataset: Path) -> None:
    read = list(open_folder(dataset).episodes())
    assert len(read) == len(episodes)
    for found, made in zip(read, episodes, strict=True):
        assert isinstance(found, Episode)
        np.testing.assert_array_equal(found.actions, made.actions)
        assert made.state is not None
        assert found.state is not None
        np.testing.assert_array_equal(found.state, made.state)
        assert (found.instruction, found.fps, found.embodiment) == (
            made.instruction,
            made.fps,
            made.embodiment,
        )
        assert found.action_names == made.action_names
        assert set(found.frames) == {"front", "wrist"}
        for view, frames in made.frames.items():
            error = found.frames[view].astype(float) - frames
            assert 10 * np.log10(255**2 / (error**2).mean()) > 30


def test_the_tables_say_what_lerobot_reads_in_them(episodes: list[Episode], dataset: Path) -> None:
    data = pandas.read_parquet(dataset / "data/chunk-000/file-000.parquet")
    lengths = [episode.length for episode in episodes]
    assert data["index"].tolist() == list(range(sum(lengths)))
    assert data["episode_index"].value_counts().sort_index().tolist() == lengths
    assert data["frame_index"].tolist() == [t for length in lengths for t in range(length)]
    np.testing.assert_allclose(data["timestamp"], data["frame_index"] / 10.0, rtol=1e-6)
    tasks = pandas.read_parquet(dataset / "meta/tasks.parquet")
    for episode, task in zip(episodes, data.groupby("episode_index")["task_index"].first(), strict=True):
        assert tasks.iloc[task].name == episode.instruction
    rows = pandas.read_parquet(dataset / "meta/episodes/chunk-000/file-000.parquet")
    assert rows["dataset_from_index"].tolist() == [0, 9, 21]
    assert rows["dataset_to_index"].tolist() == [9, 21, 28]
    info = json.loads((dataset / "meta/info.json").read_text())
    for row in rows.to_dict("records"):
        for view in ("front", "wrist"):
            key = f"observation.images.{view}"
            place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            assert (dataset / info["video_path"].format(video_key=key, **place)).is_file()
            assert row[f"videos/{key}/to_timestamp"] == pytest.approx(row["length"] / 10)
    assert (info["total_frames"], info["total_episodes"], info["splits"]) == (28, 3, {"train": "0:3"})
    assert set(info["features"]) == set(data.columns) | {
        "observation.images.front",
        "observation.images.wrist",
    }


def test_statistics_are_those_of_all_frames(episodes: list[Episode], dataset: Path) -> None:
    told = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    np.testing.assert_allclose(told["action"]["mean"], actions.mean(axis=0))
    np.testing.assert_allclose(told["action"]["std"], actions.std(axis=0))
    np.testing.assert_allclose(told["action"]["max"], actions.max(axis=0))
    pixels = np.concatenate([episode.frames["wrist"] for episode in episodes]).astype(np.float64) / 255
    np.testing.assert_allclose(
        np.squeeze(told["observation.images.wrist"]["mean"]), pixels.mean(axis=(0, 1, 2))
    )
    np.testing.assert_allclose(
        np.squeeze(told["observation.images.wrist"]["min"]), pixels.min(axis=(0, 1, 2))
    )


def test_odd_sides_are_padded_and_told(tmp_path: Path) -> None:
    write_lerobot([made_episode(0, 0, length=4, size=17)], tmp_path / "odd")
    [read] = open_folder(tmp_path / "odd").episodes()
    assert isinstance(read, Episode)
    assert read.frames["front"].shape == (4, 18, 18, 3)


def test_what_a_dataset_cannot_hold_is_refused_and_leaves_nothing(
    episodes: list[Episode], tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    with pytest.raises(UserError, match=r"differs from 'made/task0/1/v0' in observation\.images\.front"):
        write_lerobot([episodes[0], moving(0, 4, 8, size=64)], folder)
    with pytest.raises(UserError, match="no episodes"):
        write_lerobot([], folder)
    with pytest.raises(UserError, match="cannot name a folder"):
        write_lerobot([replace(episodes[0], frames={"../x": episodes[0].view()})], folder)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_lerobot(episodes, folder)


def test_kinds_of_actions_come_back(episodes: list[Episode], tmp_path: Path) -> None:
    dims = episodes[0].actions.shape[1]
    kinds: tuple[ActionKind, ...] = ("event", "velocity", "unknown", "toggle")[:dims]
    written = [replace(one, state=None, action_kinds=kinds, action_names=()) for one in episodes]
    write_lerobot(written, tmp_path / "kinds")
    source = LeRobotSource(tmp_path / "kinds")
    assert source.action_findings.kinds == kinds
    assert source.action_findings.reasons[0] == "info.json says so"
    info = tmp_path / "kinds/meta/info.json"
    content = json.loads(info.read_text())
    for wrong in (["delta"], "delta", ["sideways"] * dims, {}):
        content["features"]["action"]["info"]["action_kinds"] = wrong
        info.write_text(json.dumps(content))
        found = LeRobotSource(tmp_path / "kinds").action_findings
        assert set(found.kinds) == {"unknown"}
        assert f"the action_kinds of 'action' are not kinds of its {dims} numbers" in found.notes[0]
