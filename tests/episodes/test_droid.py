"""The DROID annotation layout against its own JSON and videos."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from episode_files import droid_states, read_mp4, write_droid
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.episodes.sources.base import EpisodeSource, Quarantined
from roboalign_ray.episodes.sources.droid import DroidSource, actions_from_states

VIEWS = ["exterior_1", "exterior_2", "wrist"]


def test_episodes_hold_what_the_files_hold(tmp_path):
    write_droid(tmp_path, [7, 5])
    source = DroidSource(tmp_path)
    assert isinstance(source, EpisodeSource)
    assert len(source) == 2
    for number, episode in enumerate(source.episodes()):
        assert list(episode.frames) == VIEWS
        for camera, view in enumerate(VIEWS):
            video = tmp_path / f"videos/train/{number}/{camera}.mp4"
            assert np.array_equal(episode.frames[view], read_mp4(video))
        assert np.array_equal(episode.state, droid_states(episode.length, number).astype(np.float32))
        assert (episode.instruction, episode.fps, episode.embodiment) == (f"task {number}", 5.0, "franka")
        assert episode.outcome.success is (number == 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10_000))
def test_adding_the_actions_up_gives_the_last_pose(length, seed):
    states = droid_states(length, seed)
    actions = actions_from_states(states).astype(np.float64)
    assert np.allclose(states[0, :3] + actions[:, :3].sum(0), states[-1, :3], atol=1e-5)
    for angle in (3, 4, 5):  # up to whole turns
        error = states[0, angle] + actions[:, angle].sum() - states[-1, angle]
        assert math.isclose(math.cos(error), 1.0, abs_tol=1e-8)
    assert np.abs(actions[:, 3:6]).max() < 1.0  # the wrap at pi is no motion
    assert np.allclose(actions[:-1, 6], states[1:, 6], atol=1e-6)
    assert not actions[-1, :6].any()


def test_one_surplus_frame_is_cut_at_the_end_and_noted(tmp_path):
    write_droid(tmp_path, [6], surplus=1)
    (episode,) = DroidSource(tmp_path).episodes()
    assert episode.length == 6
    assert np.array_equal(episode.frames["wrist"], read_mp4(tmp_path / "videos/train/0/2.mp4")[:6])
    assert len(episode.provenance["notes"]) == 3
    assert "last of 7 frames cut off" in episode.provenance["notes"][0]


@pytest.mark.parametrize("surplus", [-1, 2])
def test_any_other_mismatch_is_quarantined(tmp_path, surplus):
    write_droid(tmp_path, [6], surplus=surplus)
    (item,) = DroidSource(tmp_path).episodes()
    assert isinstance(item, Quarantined)
    assert f"{6 + surplus} frames for 6 states" in item.reason
    assert "videos/train/0/0.mp4" in item.reason


def test_views_can_be_chosen(tmp_path):
    write_droid(tmp_path, [4])
    (episode,) = DroidSource(tmp_path, views=("wrist",)).episodes()
    assert list(episode.frames) == ["wrist"]


def test_real_states_are_the_15hz_recording_at_every_third_sample(real_data):
    """So the actions equal the achieved 15 Hz steps, added up three at a time."""
    root = real_data / "droid"
    source = DroidSource(root, views=("wrist",))
    source.annotations = [path for path in source.annotations if "droid_subset" in str(path)][-2:]
    for path, episode in zip(list(source.annotations), source.episodes(), strict=True):
        raw = np.array(json.loads(path.read_text())["observation.state.cartesian_position"])
        steps = np.diff(np.concatenate([raw[:, :3], np.unwrap(raw[:, 3:], axis=0)], axis=1), axis=0)
        whole = len(steps) // 3
        summed = steps[: 3 * whole].reshape(whole, 3, 6).sum(axis=1)
        assert np.allclose(episode.actions[:whole, :6], summed[: episode.length], atol=2e-6)


def test_real_videos_follow_the_states_and_the_surplus_frame_is_the_last(real_data):
    """The picture's change and the joints' speed agree best unshifted, also where a video is one frame too long."""
    root = real_data / "droid"
    source = DroidSource(root, views=("wrist",))
    source.annotations = [path for path in source.annotations if path.stem in ("0006", "0011")]
    episodes = list(source.episodes())
    assert [bool(episode.provenance["notes"]) for episode in episodes] == [True, False]
    for path, episode in zip(source.annotations, episodes, strict=True):
        joints = np.array(json.loads(path.read_text())["joints"])
        assert len(joints) == episode.length
        speed = np.linalg.norm(np.diff(joints[:, :7], axis=0), axis=1)
        frames = episode.frames["wrist"].astype(np.float32)
        change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
        agreement = {
            shift: np.corrcoef(
                change[max(0, shift) : len(change) + min(0, shift)],
                speed[max(0, -shift) : len(speed) - max(0, shift)],
            )[0, 1]
            for shift in (-2, -1, 0, 1, 2)
        }
        assert max(agreement, key=agreement.get) == 0, agreement
        assert agreement[0] > 0.5


def test_every_real_episode_is_found(real_data):
    assert len(DroidSource(real_data / "droid")) == 17


def keep_videos(root, numbers, rename=None):
    """Leave these of the first episode's three videos in its annotation."""
    path = root / "annotation/train/0.json"
    annotation = json.loads(path.read_text())
    annotation["videos"] = [annotation["videos"][number] for number in numbers]
    for entry, name in zip(annotation["videos"], rename or [], strict=bool(rename)):
        (root / entry["video_path"]).rename(root / name)
        entry["video_path"] = name
    path.write_text(json.dumps(annotation))


@pytest.mark.parametrize(
    ("numbers", "views"), [((0, 2), ["exterior_1", "wrist"]), ((0, 1), VIEWS[:2]), ((2,), ["wrist"])]
)
def test_fewer_videos_are_told_apart_by_their_names(tmp_path, numbers, views):
    write_droid(tmp_path, [5])
    keep_videos(tmp_path, numbers)
    (episode,) = DroidSource(tmp_path).episodes()
    assert list(episode.frames) == views
    for number, view in zip(numbers, views, strict=True):
        assert np.array_equal(episode.frames[view], read_mp4(tmp_path / f"videos/train/0/{number}.mp4"))
    absent = [view for view in VIEWS if view not in views]
    assert episode.provenance["notes"] == [f"{view}: the annotation lists no video" for view in absent]


def test_fewer_videos_of_other_names_are_a_reason(tmp_path):
    write_droid(tmp_path, [5])
    keep_videos(tmp_path, (0, 2), ["left.mp4", "hand.mp4"])
    (item,) = DroidSource(tmp_path).episodes()
    assert "2 videos, and their names do not tell which cameras they are" in item.reason
    assert "2.mp4 (wrist)" in item.reason


@pytest.mark.parametrize("place", ["../../outside.mp4", "/etc/hostname"])
def test_a_video_outside_the_folder_is_refused(tmp_path, place):
    write_droid(tmp_path / "set", [5])
    path = tmp_path / "set/annotation/train/0.json"
    annotation = json.loads(path.read_text())
    (tmp_path / "outside.mp4").write_bytes((tmp_path / "set/videos/train/0/0.mp4").read_bytes())
    annotation["videos"][0]["video_path"] = place
    path.write_text(json.dumps(annotation))
    (item,) = DroidSource(tmp_path / "set").episodes()
    assert "leads out of the dataset's folder" in item.reason
