"""Distances of all pairs of pictures: the right pairs, of known size, in the order of time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.judge.student.clips import prepare_clips, sampled_positions
from roboalign_ray.judge.student.order import OrderOfFrames

CONFIG = StudentConfig.small(height=32, width=32, frames=4)


def distances(video: np.ndarray) -> np.ndarray:
    """Both matrices [2, 12, 12] of a clip, logarithms undone, in grey levels: whole pictures, and places."""
    module = OrderOfFrames(CONFIG, 8)
    found = module.distances(torch.from_numpy(prepare_clips([video], CONFIG)).float() / 255)[0]
    matrices = np.zeros((2, 12, 12))
    first, second = module.pairs.numpy()
    matrices[:, first, second] = 255 * np.exp(found.detach().numpy().reshape(2, -1) - 3) - 1
    return matrices + matrices.transpose(0, 2, 1)


@pytest.mark.parametrize("length", [4, 13, 40])
def test_distances_are_those_of_the_pictures_in_the_order_of_time(length: int) -> None:
    levels = np.random.default_rng(length).permutation(length) * 5
    video = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    order, before = [], 0
    for position in sampled_positions(length, 4):
        order += [min(before + 1, position) if position else 0, max(position - 1, 0), position]
        before = position
    expected = np.abs(levels[order][:, None] - levels[order][None])
    np.testing.assert_allclose(distances(video), [expected, expected], atol=0.01)


def test_pictures_are_compared_place_by_place() -> None:
    """A square that moves to where none was differs in both places; one that grows, in one."""
    video = np.zeros((4, 32, 32, 3), np.uint8)
    video[:2, :16, :16] = 240
    video[2:, 16:, :16] = 240
    whole, places = distances(video)
    assert whole[0, -1] == pytest.approx(240 / 2, abs=0.01)
    assert places[0, -1] == pytest.approx(240, abs=0.01)


def test_a_small_thing_that_moves_counts_where_it_is() -> None:
    """One of 64 places lights up: a 64th of the whole picture, a quarter of the four that differ most."""
    video = np.zeros((4, 32, 32, 3), np.uint8)
    video[2:, 8:12, 20:24] = 200
    whole, places = distances(video)
    assert whole[0, -1] == pytest.approx(200 / 64, abs=0.01)
    assert places[0, -1] == pytest.approx(200 / 4, abs=0.01)


def test_without_places_there_are_whole_pictures_alone() -> None:
    video = np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), dtype=np.uint8)
    clips = torch.from_numpy(prepare_clips([video], CONFIG)).float() / 255
    both = OrderOfFrames(CONFIG, 8).distances(clips)
    whole = OrderOfFrames(CONFIG.model_copy(update={"order_places": False}), 8).distances(clips)
    assert (whole.shape, both.shape) == ((1, 66), (1, 132))
    torch.testing.assert_close(both[:, :66], whole)


def test_a_reversed_part_leaves_every_frame_but_not_the_distances() -> None:
    video = np.stack([np.full((32, 32, 3), 10 * n, np.uint8) for n in range(13)])
    turned = np.concatenate([video[:8], video[8:][::-1]])
    plain, after = distances(video)[0], distances(turned)[0]
    assert np.abs(plain - after).max() >= 30
    np.testing.assert_allclose(plain[:6, :6], after[:6, :6], atol=0.01)
    module = OrderOfFrames(CONFIG, 8).eval()
    clips = torch.from_numpy(prepare_clips([video, turned], CONFIG)).float() / 255
    assert module(clips).shape == (2, 8)
    assert (module(clips)[0] - module(clips)[1]).abs().max() > 1e-4
