"""Clips of every kind of input, listed and read: ids, instructions, hashes, and reasons for what cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_files import clip as made_clip
from episode_files import (
    lerobot_info,
    lerobot_rows,
    write_droid,
    write_lerobot_v2,
    write_lerobot_v3,
    write_rlds,
)
from made_episodes import made_episodes
from made_pairs import made_pairs
from scored_clips import BAD, GOOD, MOST_PIXELS, frames_of, good_clip, write_clip, write_clips

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.folder import open_folder
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import HostError, UserError
from roboalign_ray.judge.data.pairs import open_pairs, write_pairs
from roboalign_ray.pipelines.label.clip_reader import ClipReader, ReadClip, content_key
from roboalign_ray.pipelines.label.clips import Clip, ClipInput, list_clips
from roboalign_ray.pipelines.label.videos import Unreadable


def read_all(source: ClipInput) -> dict[str, ReadClip | Unreadable]:
    reader = ClipReader(source, MOST_PIXELS)
    return {clip.clip_id: reader.read(clip) for clip in list_clips(source)}


def sound(found: ReadClip | Unreadable) -> ReadClip:
    assert isinstance(found, ReadClip), found
    return found


def test_a_folder_gives_each_video_its_instruction_and_each_bad_one_its_reason(tmp_path: Path) -> None:
    write_clips(tmp_path)
    found = read_all(ClipInput(str(tmp_path)))
    assert set(found) == {*GOOD, *BAD}
    for seed, name in enumerate(GOOD):
        read = sound(found[name])
        assert read.request is not None
        assert (read.request.instruction, read.request.fps) == (f"open drawer {seed}", 5.0)
        assert read.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        np.testing.assert_array_equal(read.request.frames, decode_video(tmp_path / name))
    for name, reason in BAD.items():
        bad = found[name]
        assert isinstance(bad, Unreadable), name
        assert reason in bad.reason, name
        assert bad.reason.isprintable()


def test_one_instruction_for_all_replaces_their_own(tmp_path: Path) -> None:
    write_clips(tmp_path)
    found = read_all(ClipInput(str(tmp_path), instruction="push it"))
    for name in (*GOOD, "mute.mp4", "silent.mp4"):
        request = sound(found[name]).request
        assert request is not None
        assert request.instruction == "push it"


def test_a_file_and_a_glob_are_inputs_too(tmp_path: Path) -> None:
    write_clips(tmp_path)
    assert [clip.clip_id for clip in list_clips(ClipInput(str(tmp_path / "a.mp4")))] == ["a.mp4"]
    found = [clip.clip_id for clip in list_clips(ClipInput(f"{tmp_path}/d*/*.mp4"))]
    assert found == ["deep/b.mp4"]


@pytest.mark.parametrize("scheme", ["file", "local"])  # of pyarrow, and of fsspec
def test_a_uri_gives_the_clips_of_its_folder(tmp_path: Path, scheme: str) -> None:
    write_clips(tmp_path)
    ours, far = read_all(ClipInput(str(tmp_path))), read_all(ClipInput(f"{scheme}://{tmp_path}"))
    assert set(ours) == set(far)
    for name, clip in ours.items():
        other = far[name]
        assert type(clip) is type(other), name
        if isinstance(clip, ReadClip) and isinstance(other, ReadClip):
            assert clip.sha256 == other.sha256
            assert clip.request is not None
            assert other.request is not None
            assert clip.request.instruction == other.request.instruction


@pytest.mark.parametrize("uri", ["file:///no/such/folder", "nothing://at/all", "local:///no/such/folder"])
def test_a_uri_without_anything_is_one_line(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        list_clips(ClipInput(uri))
    assert uri in caught.value.line()


def rows_of(folder: Path, name: str, group: int = 2, **columns: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name, row_group_size=group)
    return folder / name


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_rows_of_videos_and_of_paths_are_the_same_clips(tmp_path: Path, scheme: str) -> None:
    files = [good_clip(seed) for seed in range(5)]
    for number, content in enumerate(files):
        write_clip(tmp_path / "rows" / f"v{number}.mp4", content, None)
    instructions = [f"do {number}" for number in range(5)]
    names = [f"v{number}.mp4" for number in range(5)]
    bytes_file = rows_of(tmp_path / "rows", "b.parquet", video=files, instruction=instructions)
    paths_file = rows_of(tmp_path / "rows", "p.parquet", path=names, task=instructions)
    one = read_all(ClipInput(f"{scheme}{bytes_file}"))
    two = read_all(ClipInput(f"{scheme}{paths_file}", instruction_column="task"))
    assert list(one) == [f"b.parquet#{number}" for number in range(5)]
    for number, (first, second) in enumerate(zip(one.values(), two.values(), strict=True)):
        for clip in (sound(first), sound(second)):
            assert clip.request is not None
            assert clip.request.instruction == f"do {number}"
            assert clip.sha256 == hashlib.sha256(files[number]).hexdigest()
            np.testing.assert_array_equal(clip.request.frames, decode_video(files[number]))


def test_rows_that_lead_elsewhere_or_hold_no_video_are_set_aside(tmp_path: Path) -> None:
    write_clip(tmp_path / "secret.mp4", good_clip(0), None)
    paths = ["../secret.mp4", str(tmp_path / "secret.mp4"), "http://127.0.0.1:1/a.mp4", "none.mp4", None]
    path = rows_of(tmp_path / "rows", "p.parquet", path=paths, instruction=["do it"] * 5)
    for place in (str(path), f"file://{path}"):
        found = read_all(ClipInput(place))
        assert all(isinstance(one, Unreadable) for one in found.values()), found
    wrong = rows_of(tmp_path / "other", "w.parquet", video=[b"x"], instruction=[3])
    (one,) = read_all(ClipInput(str(wrong))).values()
    assert isinstance(one, Unreadable)
    assert "holds no text" in one.reason
    bare = rows_of(tmp_path / "bare", "c.parquet", clip=[good_clip(0)], instruction=["do it"])
    (one,) = read_all(ClipInput(str(bare))).values()
    assert isinstance(one, Unreadable)
    assert "no column 'video' or 'path'" in one.reason
    (one,) = read_all(ClipInput(str(bare), video_column="clip")).values()
    sound(one)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    write_clip(tmp_path / "secret.mp4", good_clip(0))
    write_clip(tmp_path / "clips" / "a.mp4", good_clip(1))
    os.symlink(tmp_path / "secret.mp4", tmp_path / "clips" / "b.mp4")
    found = read_all(ClipInput(str(tmp_path / "clips"), instruction="open it"))
    sound(found["a.mp4"])
    link = found["b.mp4"]
    assert isinstance(link, Unreadable)
    assert "leads out of the dataset's folder" in link.reason


def lerobot_v3(folder: Path) -> None:
    lengths = (6, 7, 8)
    clips = [made_clip(length, number) for number, length in enumerate(lengths)]
    lerobot_info(folder, "v3.0", len(lengths))
    write_lerobot_v3(folder, clips, [lerobot_rows(number, length) for number, length in enumerate(lengths)])


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_droid(folder, [6, 7, 8]),
        lambda folder: write_lerobot_v2(folder, [6, 7, 8]),
        lerobot_v3,
        lambda folder: write_rlds(folder, [6, 7, 8]),
    ],
    ids=["droid", "lerobot2", "lerobot3", "rlds"],
)
def test_episodes_of_a_data_set_are_its_clips_in_any_order(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    folder = tmp_path / "set"
    write(folder)
    wanted = {}
    for episode in open_folder(folder).episodes():
        assert isinstance(episode, Episode)
        wanted[episode.episode_id] = episode
    source = ClipInput(str(folder), instruction="do it")
    clips = list_clips(source)
    assert [clip.clip_id for clip in clips] == list(wanted)
    reader = ClipReader(source, MOST_PIXELS)
    for number in (0, 2, 1, 1):  # a reader that is ahead begins again
        found = sound(reader.read(clips[number]))
        assert found.request is not None
        np.testing.assert_array_equal(found.request.frames, wanted[clips[number].clip_id].view())


def test_stores_of_episodes_and_of_pairs_are_inputs(tmp_path: Path) -> None:
    write_store(made_episodes(2, 2, 1), tmp_path / "store")
    write_pairs(made_pairs(4), tmp_path / "pairs")
    store, pairs = open_store(tmp_path / "store"), open_pairs(tmp_path / "pairs")
    found = read_all(ClipInput(str(tmp_path / "store")))
    for name in store.ids:
        request = sound(found[name]).request
        assert request is not None
        assert request.instruction == store.read(name).instruction
        np.testing.assert_array_equal(request.frames, store.read(name).view())
    found = read_all(ClipInput(str(tmp_path / "pairs")))
    for name in pairs.ids:
        request = sound(found[name]).request
        assert request is not None
        assert request.instruction == pairs.read(name).instruction


def test_content_that_has_a_score_is_not_decoded(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", good_clip(0))
    [clip] = list_clips(ClipInput(str(tmp_path)))
    digest = hashlib.sha256(good_clip(0)).hexdigest()
    for instruction, same in (("open it", True), ("close it", False)):
        before = content_key(digest, instruction)
        marked = Clip(**{**vars(clip), "before": before})
        found = sound(ClipReader(ClipInput(str(tmp_path)), MOST_PIXELS).read(marked))
        assert (found.request is None) == same


def test_a_machine_that_denies_access_is_no_bad_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.mp4", good_clip(0))
    source = ClipInput(str(tmp_path))
    [clip] = list_clips(source)

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.mp4"))

    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(HostError, match="Permission denied"):
        ClipReader(source, MOST_PIXELS).read(clip)


@pytest.mark.parametrize(
    ("name", "line"), [("absent", "no such folder, file or store"), ("", "holds no video")]
)
def test_an_input_without_clips_is_one_line(tmp_path: Path, name: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        list_clips(ClipInput(str(tmp_path / name)))


def test_frames_that_differ_have_other_hashes(tmp_path: Path) -> None:
    from dataclasses import replace

    pairs = list(made_pairs(2))
    same = [
        replace(pairs[0], pair_id="x", frames=frames_of(0)),
        replace(pairs[0], pair_id="y", frames=frames_of(1)),
    ]
    write_pairs(iter([*same, replace(same[0], pair_id="z")]), tmp_path / "pairs")
    found = read_all(ClipInput(str(tmp_path / "pairs")))
    x, y, z = (sound(found[name]).sha256 for name in "xyz")
    assert x == z
    assert x != y
