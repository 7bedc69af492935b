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
    """The whole matrix [12, 12] of a clip, logarithms undone, in grey levels."""
    module = OrderOfFrames(CONFIG, 8)
    found = module.distances(torch.from_numpy(prepare_clips([video], CONFIG)).float() / 255)[0]
    matrix = np.zeros((12, 12))
    matrix[tuple(module.pairs.numpy())] = 255 * np.exp(found.detach().numpy() - 3) - 1
    return matrix + matrix.T


@pytest.mark.parametrize("length", [4, 13, 40])
def test_distances_are_those_of_the_pictures_in_the_order_of_time(length: int) -> None:
    levels = np.random.default_rng(length).permutation(length) * 5
    video = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    order, before = [], 0
    for position in sampled_positions(length, 4):
        order += [min(before + 1, position) if position else 0, max(position - 1, 0), position]
        before = position
    expected = np.abs(levels[order][:, None] - levels[order][None])
    np.testing.assert_allclose(distances(video), expected, atol=0.01)


def test_pictures_are_compared_place_by_place() -> None:
    """A square that moves to where none was differs in both places; one that grows, in one."""
    video = np.zeros((4, 32, 32, 3), np.uint8)
    video[:2, :16, :16] = 240
    video[2:, 16:, :16] = 240
    assert distances(video)[0, -1] == pytest.approx(240 / 2, abs=0.01)


def test_a_reversed_part_leaves_every_frame_but_not_the_distances() -> None:
    video = np.stack([np.full((32, 32, 3), 10 * n, np.uint8) for n in range(13)])
    turned = np.concatenate([video[:8], video[8:][::-1]])
    plain, after = distances(video), distances(turned)
    assert np.abs(plain - after).max() >= 30
    np.testing.assert_allclose(plain[:6, :6], after[:6, :6], atol=0.01)
    module = OrderOfFrames(CONFIG, 8).eval()
    clips = torch.from_numpy(prepare_clips([video, turned], CONFIG)).float() / 255
    assert module(clips).shape == (2, 8)
    assert (module(clips)[0] - module(clips)[1]).abs().max() > 1e-4
