"""Stride and size against plain loops and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from roboalign_ray.episodes.action_kinds import accumulate_actions
from roboalign_ray.episodes.episode import Episode, EpisodeError, Outcome
from roboalign_ray.episodes.transforms import (
    resize_episode,
    resize_frames,
    stride_episode,
    target_size,
)

NAMES, KINDS = ("delta_x [m]", "gripper"), ("delta", "hold")


def episode(length: int) -> Episode:
    rng = np.random.default_rng(length)
    return Episode(
        episode_id="test/0",
        group_id="test/0",
        frames={"front": rng.integers(0, 255, (length, 20, 30, 3), dtype=np.uint8)},
        actions=rng.normal(size=(length, 2)).astype(np.float32),
        action_names=NAMES,
        action_kinds=KINDS,
        state=rng.normal(size=(length, 3)).astype(np.float32),
        instruction="do",
        fps=30.0,
        embodiment="arm",
        outcome=Outcome(privileged={"contact": np.arange(length) % 2 == 0}),
    )


@given(length=st.integers(1, 40), stride=st.integers(1, 12))
def test_increments_add_up_and_of_commands_the_last_counts(length, stride):
    actions = np.random.default_rng(length).normal(size=(length, 2)).astype(np.float32)
    merged = accumulate_actions(actions, KINDS, stride)
    groups = [actions[start : start + stride] for start in range(0, length, stride)]
    assert np.allclose(merged[:, 0], [group[:, 0].sum() for group in groups], atol=1e-5)
    assert merged[:, 1].tolist() == [group[-1, 1] for group in groups]
    assert np.isclose(merged[:, 0].sum(), actions[:, 0].sum(), atol=1e-4)  # no motion is lost


@given(length=st.integers(5, 40), stride=st.integers(1, 4))
def test_a_strided_episode_is_every_nth_frame(length, stride):
    whole = episode(length)
    thin = stride_episode(whole, stride)
    assert np.array_equal(thin.frames["front"], whole.frames["front"][::stride])
    assert np.array_equal(thin.state, whole.state[::stride])
    assert (
        thin.outcome.privileged["contact"].tolist() == whole.outcome.privileged["contact"][::stride].tolist()
    )
    assert thin.fps * stride == pytest.approx(30.0)


def test_an_episode_shorter_than_a_stride_is_refused():
    with pytest.raises(EpisodeError, match="too few"):
        stride_episode(episode(4), 4)


def test_stretching_is_pillows_filter_frame_by_frame():
    frames = episode(3).frames["front"]
    small = resize_frames(frames, 8, 8)
    expected = np.asarray(Image.fromarray(frames[2]).resize((8, 8), Image.Resampling.LANCZOS))
    assert np.array_equal(small[2], expected)


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from(["stretch", "crop", "pad"]))
def test_every_fit_gives_the_size_asked_for(height, width, fit):
    assert resize_frames(episode(1).frames["front"], height, width, fit).shape == (1, height, width, 3)


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    frames = np.zeros((1, 20, 40, 3), np.uint8)
    frames[:, :, 10:30] = 255  # the middle half is white
    assert resize_frames(frames, 20, 20, "crop").min() == 255
    padded = resize_frames(frames, 20, 20, "pad")
    assert not padded[:, :5].any()
    assert not padded[:, 15:].any()
    assert padded[0, 10, 10].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(None, None, (192, 320)), (96, None, (96, 160)), (None, 64, (38, 64)), (64, 64, (64, 64))],
)
def test_one_side_alone_keeps_the_aspect(height, width, expected):
    assert target_size((192, 320), height, width) == expected


def test_a_resized_episode_remembers_its_size():
    small = resize_episode(episode(2), 10, None, "crop")
    assert small.frames["front"].shape == (2, 10, 16, 3)
    assert small.provenance["resized_from"] == {"front": [20, 30]}
