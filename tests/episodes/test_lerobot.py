"""LeRobot v2.1 and v3.0 against the files themselves: Parquet by pyarrow, frames by a plain PyAV loop."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_files import (
    CAMERA,
    clip,
    lerobot_info,
    lerobot_rows,
    png,
    read_mp4,
    write_lerobot_v2,
    write_lerobot_v3,
)

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import EpisodeSource, Quarantined
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.foundation.failures import UserError

REAL_CAMERA = "observation.images.cam_high"


def test_v2_episodes_equal_their_files(tmp_path):
    write_lerobot_v2(tmp_path, [8, 5])
    source = LeRobotSource(tmp_path)
    assert isinstance(source, EpisodeSource)
    assert len(source) == 2
    for number, episode in enumerate(source.episodes()):
        table = pq.read_table(tmp_path / f"data/chunk-000/episode_{number:06d}.parquet")
        assert np.array_equal(episode.actions, np.stack(table["action"].to_numpy(zero_copy_only=False)))
        assert np.array_equal(
            episode.state, np.stack(table["observation.state"].to_numpy(zero_copy_only=False))
        )
        video = tmp_path / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        assert np.array_equal(episode.frames["front"], read_mp4(video))
        assert episode.action_names == ("a", "b", "c", "gripper")
        assert (episode.instruction, episode.fps, episode.embodiment) == (f"task {number}", 10.0, "so100")


def test_the_rate_is_that_of_info_json_whatever_the_video_says(tmp_path):
    write_lerobot_v2(tmp_path, [6])  # its mp4 says 10
    lerobot_info(tmp_path, "v2.1", 1, fps=30)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    rows = pq.read_table(path).to_pydict() | {"timestamp": [number / 30 for number in range(6)]}
    pq.write_table(pa.table(rows), path)
    (episode,) = LeRobotSource(tmp_path).episodes()
    assert (episode.fps, episode.length) == (30.0, 6)


@pytest.mark.parametrize("lengths", [[7, 12, 5], [1, 3], [40, 2, 30]])
def test_v3_episodes_are_cut_from_the_shared_files_exactly(tmp_path, lengths):
    clips = [clip(length, number) for number, length in enumerate(lengths)]
    lerobot_info(tmp_path, "v3.0", len(lengths))
    rows = [lerobot_rows(number, length) for number, length in enumerate(lengths)]
    write_lerobot_v3(tmp_path, clips, rows)
    whole = read_mp4(tmp_path / f"videos/{CAMERA}/chunk-000/file-000.mp4")
    start = 0
    for number, (episode, length) in enumerate(zip(LeRobotSource(tmp_path).episodes(), lengths, strict=True)):
        assert isinstance(episode, Episode), episode
        assert np.array_equal(episode.frames["front"], whole[start : start + length])
        assert np.array_equal(episode.actions, np.float32(rows[number]["action"]))
        assert np.array_equal(episode.state, np.float32(rows[number]["observation.state"]))
        assert episode.instruction == f"task {number}"
        # The pictures themselves, not only their place: brightness counts the frames of this episode.
        left = episode.frames["front"][:, 4:-4, 4:16].mean(axis=(1, 2, 3))
        assert np.abs(left - clips[number][:, 0, 0, 0]).max() < 6
        start += length


def test_rows_out_of_order_are_sorted_by_frame(tmp_path):
    write_lerobot_v2(tmp_path, [6])
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([3, 1, 5, 0, 2, 4]), path)
    (episode,) = LeRobotSource(tmp_path).episodes()
    assert np.array_equal(episode.actions, np.stack(table["action"].to_numpy(zero_copy_only=False)))


def test_pictures_inside_the_table_are_read(tmp_path):
    write_lerobot_v2(tmp_path, [5])
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"][CAMERA]["dtype"] = "image"
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    cells = [{"bytes": png(frame), "path": None} for frame in clip(5)]
    pq.write_table(pq.read_table(path).append_column(CAMERA, pa.array(cells)), path)
    (episode,) = LeRobotSource(tmp_path).episodes()
    assert np.array_equal(episode.frames["front"], clip(5))


def test_depth_maps_are_no_views(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    info = json.loads((tmp_path / "meta/info.json").read_text())
    depth = {"dtype": "video", "shape": [32, 48, 1], "info": {"video.is_depth_map": True}}
    info["features"]["observation.images.depth"] = depth
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    (episode,) = LeRobotSource(tmp_path).episodes()
    assert list(episode.frames) == ["front"]


@pytest.mark.parametrize(
    ("file", "text", "clue"),
    [
        ("meta/info.json", "{", "cannot be read as LeRobot info"),
        ("meta/info.json", '{"codebase_version": "v2.1"}', "fps: Field required"),
        ("meta/episodes.jsonl", '{"episode_index": 0', "episode tables cannot be read"),
    ],
)
def test_unreadable_metadata_is_one_clear_error(tmp_path, file, text, clue):
    write_lerobot_v2(tmp_path, [4])
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=clue):
        LeRobotSource(tmp_path)


def test_an_unknown_version_is_named(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    lerobot_info(tmp_path, "v1.6", 1)
    with pytest.raises(UserError, match=r"v1\.6"):
        LeRobotSource(tmp_path)


def test_real_g1_episodes_equal_their_files_and_missing_videos_are_named(real_data):
    root = real_data / "g1_lerobot"
    source = LeRobotSource(root)
    source.entries = [source.entries[0], source.entries[2]]  # a missing video, one that is there
    missing, episode = source.episodes()
    assert isinstance(missing, Quarantined)
    assert f"videos/chunk-000/{REAL_CAMERA}/episode_000000.mp4" in missing.reason
    table = pq.read_table(root / "data/chunk-000/episode_000002.parquet")
    assert np.array_equal(episode.actions, np.stack(table["action"].to_numpy(zero_copy_only=False)))
    frames = read_mp4(root / f"videos/chunk-000/{REAL_CAMERA}/episode_000002.mp4")
    assert np.array_equal(episode.frames["cam_high"], frames)
    assert (episode.fps, episode.actions.shape) == (30.0, (343, 26))


def test_all_missing_g1_videos_are_quarantined_by_name(real_data):
    root = real_data / "g1_lerobot"
    source = LeRobotSource(root)
    absent = [entry for entry in source.entries if not (root / entry.clips[REAL_CAMERA].file).is_file()]
    source.entries = absent
    items = list(source.episodes())
    assert len(items) == 95
    assert all(isinstance(item, Quarantined) for item in items)
    assert {item.reason.split(": ")[0] for item in items} == {
        f"videos/chunk-000/{REAL_CAMERA}/episode_{number:06d}.mp4"
        for number in range(100)
        if number not in (1, 2, 4, 5, 7)
    }


def test_v3_made_of_real_g1_frames_gives_them_back(real_data, tmp_path):
    """Two real episodes (first 40 and 25 frames, a quarter of the size) in one v3.0 file."""
    root = real_data / "g1_lerobot"
    clips, rows = [], []
    for number, length in ((0, 40), (1, 25)):
        real = (1, 2)[number]
        video = root / f"videos/chunk-000/{REAL_CAMERA}/episode_{real:06d}.mp4"
        clips.append(read_mp4(video, length)[:, ::4, ::4])
        table = pq.read_table(root / f"data/chunk-000/episode_{real:06d}.parquet").slice(0, length)
        rows.append(table.to_pydict() | {"episode_index": [number] * length})
    info = json.loads((root / "meta/info.json").read_text()) | {
        "codebase_version": "v3.0",
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    write_lerobot_v3(tmp_path, clips, rows, camera=REAL_CAMERA, fps=30)
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    for episode, frames, row in zip(LeRobotSource(tmp_path).episodes(), clips, rows, strict=True):
        assert np.array_equal(episode.actions, np.float32(row["action"]))
        difference = np.abs(episode.frames["cam_high"].astype(int) - frames.astype(int)).mean(axis=(1, 2, 3))
        assert difference.max() < 6  # H.264 at its default quality
        # Each frame is nearest to its own original: none is shifted.
        still = episode.frames["cam_high"][10].astype(int)
        errors = [np.abs(still - frame.astype(int)).mean() for frame in frames[8:13:2]]
        assert int(np.argmin(errors)) == 1
