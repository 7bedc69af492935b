"""Frames thinned and resized while they are decoded: the same pixels as decoding all first, in a fraction of memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_files import CAMERA, clip, png, write_droid, write_lerobot_v2, write_rlds
from hypothesis import given
from hypothesis import strategies as st
from made_videos import film, picture

from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.shaping import FrameCollector, Kept, Shaping
from roboalign_ray.episodes.sources.folder import open_folder
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.transforms import resize_episode, resize_frames, stride_episode
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.episodes.video_frames import read_frames
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert


@given(
    length=st.integers(1, 70),
    expected=st.sampled_from([None, 0, 5]),
    stride=st.integers(1, 9),
    size=st.sampled_from([(None, None), (8, None), (6, 10), (20, 24)]),
    fit=st.sampled_from(["stretch", "crop", "pad"]),
)
def test_collected_frames_are_those_of_all_frames_thinned_then_resized(
    length: int, expected: int | None, stride: int, size: tuple, fit: str
) -> None:
    frames = np.random.default_rng(length).integers(0, 255, (length, 20, 24, 3), dtype=np.uint8)
    shaping = Shaping(stride, None, *size, fit)
    collector = FrameCollector(shaping, None if expected is None else length + expected)
    for frame in frames:
        collector.add(frame)
    kept = collector.done()
    whole = resize_frames(frames[::stride], *shaping.size(20, 24), fit)
    assert np.array_equal(kept.pictures, whole)
    assert (kept.count, kept.size) == (length, (20, 24))


def _same(one: Episode, other: Episode) -> None:
    assert one.frames.keys() == other.frames.keys()
    for view, pictures in one.frames.items():
        assert isinstance(pictures, np.ndarray)
        assert np.array_equal(pictures, other.frames[view])
    assert np.array_equal(one.actions, other.actions)
    assert one.provenance == other.provenance


@pytest.mark.parametrize("kind", ["lerobot", "pictures", "droid", "droid with a surplus frame", "rlds"])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("size", [(None, None), (16, 12)])
def test_every_source_gives_the_pixels_of_decoding_all_first(
    kind: str, stride: int, size: tuple, tmp_path: Path
) -> None:
    _written(tmp_path, kind)
    shaping = Shaping(stride, None, *size, "crop")
    whole = list(open_folder(tmp_path).episodes())
    shaped = list(open_folder(tmp_path, shaping=shaping).episodes())
    assert len(whole) == len(shaped) > 0
    for one, other in zip(whole, shaped, strict=True):
        assert isinstance(one, Episode), one
        assert isinstance(other, Episode), other
        kinds = ("absolute",) * one.actions.shape[1]
        told = [replace(episode, action_kinds=kinds) for episode in (one, other)]
        _same(*(resize_episode(stride_episode(episode, stride), *size, "crop") for episode in told))


def _written(folder: Path, kind: str) -> None:
    if kind == "rlds":
        write_rlds(folder, [13, 8])
    elif kind.startswith("droid"):
        write_droid(folder, [13, 8], surplus=int("surplus" in kind))
    else:
        write_lerobot_v2(folder, [13, 8])
    if kind == "pictures":
        import json

        import pyarrow as pa
        import pyarrow.parquet as pq

        info = json.loads((folder / "meta/info.json").read_text())
        info["features"][CAMERA]["dtype"] = "image"
        (folder / "meta/info.json").write_text(json.dumps(info))
        for number, length in enumerate([13, 8]):
            path = folder / f"data/chunk-000/episode_{number:06d}.parquet"
            cells = pa.array([{"bytes": png(frame), "path": None} for frame in clip(length)])
            pq.write_table(pq.read_table(path).append_column(CAMERA, cells), path)


def test_a_stand_in_answers_only_what_was_done_in_advance() -> None:
    kept = Kept(np.zeros((4, 8, 8, 3), np.uint8), 10, (20, 24), 3)
    frames = kept.frames()
    assert (len(frames), frames.shape) == (10, (10, 20, 24, 3))
    assert np.array_equal(resize_frames(frames[::3], 8, 8), kept.pictures)
    for wrong in (
        lambda: frames[::2],
        lambda: resize_frames(frames, 8, 8),
        lambda: resize_frames(frames[::3], 9, 8),
    ):
        with pytest.raises(ValueError):
            wrong()
    assert len(kept.frames(9)[::3].shape) == 4
    assert len(resize_frames(kept.frames(9)[::3], 8, 8)) == 3  # frames 0, 3 and 6 of nine


def test_the_wanted_rate_must_divide_the_sources() -> None:
    assert Shaping(fps=10).of_rate(30, "x").stride == 3
    assert Shaping(stride=2).of_rate(30, "x").stride == 2
    with pytest.raises(EpisodeError, match="12 Hz does not divide its 30 Hz"):
        Shaping(fps=12).of_rate(30, "x")


def test_a_conversion_keeps_what_was_asked_for(tmp_path: Path) -> None:
    write_lerobot_v2(tmp_path / "set", [13, 8])
    convert(
        tmp_path / "set", tmp_path / "store", ConvertOptions(height=16, fps=5.0, action_kind="absolute*4")
    )
    store = open_store(tmp_path / "store")
    for number, length in enumerate([7, 4]):
        episode = store.read(number)
        assert episode.view().shape == (length, 16, 24, 3)
        assert (episode.fps, len(episode.actions)) == (5.0, length)
        assert episode.provenance["resized_from"] == {"front": [32, 48]}


MEASURE = """
import resource, sys
from pathlib import Path
from roboalign_ray.episodes.shaping import Shaping
from roboalign_ray.episodes.video_frames import read_frames
film = Path(sys.argv[1])
read_frames(film, shaping=Shaping(200, None, 16, 16))   # what reading one costs at all
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = read_frames(film, shaping=Shaping(1, None, 64, 64))
assert kept.pictures.shape == (600, 64, 64, 3) and kept.count == 600
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_twenty_seconds_at_640_by_480_take_the_memory_of_what_is_kept(tmp_path: Path) -> None:
    """All frames together would be 550 MB; those kept are 7 MB."""
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1) for _ in range(3)
    ]
    path = tmp_path / "long.mp4"
    path.write_bytes(
        film([pictures[t // 200] for t in range(600)], settings={"preset": "ultrafast"}, key_every=250)
    )
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 120


def test_the_kept_frames_are_limited_not_the_recorded_ones() -> None:
    data = film([picture(0, t % 200) for t in range(100)])
    with pytest.raises(EpisodeError, match="hold more than"):
        decode_video(data, most_pixels=64 * 64 * 99)
    small = read_frames(data, shaping=Shaping(10, None, 8, 8), most_pixels=8 * 8 * 10)
    assert small.pictures.shape == (10, 8, 8, 3)
