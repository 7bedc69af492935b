"""What the denoiser sees: against a slow loop, with padding, and on the uint8 grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roboalign_ray.config import DenoiserConfig
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.conditioning import (
    clip_of,
    clip_to_bytes,
    inputs_of,
    to_bytes,
    to_signed,
)

SCALING = ActionScaling((-1.0, 0.0), (3.0, 10.0))


def scaled(value: float, dim: int) -> float:
    low, high = SCALING.low[dim], SCALING.high[dim]
    return float(np.clip(2 * (value - low) / (high - low) - 1, -1.5, 1.5))


@pytest.mark.parametrize("known", [1, 2, 5, 9])
@pytest.mark.parametrize("clip", [1, 3])
def test_inputs_against_a_loop(known: int, clip: int) -> None:
    config = DenoiserConfig(
        views=2, height=16, width=16, channels=(8, 8), history=(0, 2, 6), clip_frames=clip, action_dims=2
    )
    rng = np.random.default_rng(known)
    frames = rng.integers(0, 256, (3, known, 2, 16, 16, 3), dtype=np.uint8)
    reference = rng.integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8)
    actions = rng.normal(1, 6, (3, known - 1 + clip, 2))
    made = inputs_of(*map(torch.from_numpy, (frames, reference, actions)), config, SCALING)

    history = np.zeros((3, 2, 3, 3, 16, 16))
    told = np.zeros((3, 2 + clip, 2))
    for row in range(3):
        for place, back in enumerate((0, 2, 6)):
            for view in range(2):
                picture = frames[row, max(0, known - 1 - back), view] / 127.5 - 1
                history[row, view, place] = picture.transpose(2, 0, 1)
        for place in range(2 + clip):
            number = (
                known - 1 - 2 + place
            )  # actions[known - 1] leads from the newest frame to the first new one
            for dim in range(2):
                told[row, place, dim] = scaled(actions[row, number, dim], dim) if number >= 0 else 0.0
    np.testing.assert_allclose(made.history, history, atol=1e-6)
    np.testing.assert_allclose(made.actions, told, atol=1e-6)
    np.testing.assert_allclose(made.reference, (reference / 127.5 - 1).transpose(0, 1, 4, 2, 3), atol=1e-6)
    np.testing.assert_allclose(made.newest[:, :, 0], history[:, :, 0], atol=1e-6)
    assert made.level.tolist() == [0, 0, 0]


def test_actions_that_do_not_lead_to_the_clip_are_refused() -> None:
    config = DenoiserConfig(action_dims=2)
    frames = torch.zeros(1, 3, 1, 64, 64, 3, dtype=torch.uint8)
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"{count} actions for 3 frames"):
            inputs_of(frames, frames[:, 0], torch.zeros(1, count, 2), config, SCALING)


def test_every_byte_comes_back_and_what_lies_between_is_rounded() -> None:
    grid = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(16, 16, 3)
    assert torch.equal(to_bytes(to_signed(grid)), grid)
    between = (torch.tensor([10.4, 10.6, -3.0, 300.0]) / 127.5 - 1).expand(3, 1, 4)
    assert to_bytes(between)[0, :, 0].tolist() == [10, 11, 0, 255]


def test_clips_and_frames_differ_in_the_order_of_their_axes_alone() -> None:
    frames = torch.randint(0, 256, (2, 3, 2, 8, 4, 3), dtype=torch.uint8)
    clip = clip_of(frames)
    assert clip.shape == (2, 2, 3, 3, 8, 4)
    assert float(clip[1, 0, 2, 1, 5, 3]) == pytest.approx(float(frames[1, 2, 0, 5, 3, 1]) / 127.5 - 1)
    assert torch.equal(clip_to_bytes(clip), frames)


def test_noise_on_the_history_has_the_level_that_the_network_is_told() -> None:
    config = DenoiserConfig(height=16, width=16, channels=(8, 8), action_dims=2)
    frames = torch.full((2, 1, 1, 16, 16, 3), 128, dtype=torch.uint8)
    clean = inputs_of(frames, frames[:, 0], torch.zeros(2, 1, 2), config, SCALING)
    seen = clean.with_noise(torch.tensor([0.0, 0.1]), torch.randn(clean.history.shape))
    assert torch.equal(seen.history[0], clean.history[0])
    assert float((seen.history[1] - clean.history[1]).std()) == pytest.approx(0.1, rel=0.1)
    assert seen.level.tolist() == pytest.approx([0.0, 0.1])
    assert torch.equal(seen.reference, clean.reference)


def test_percentiles_of_the_card_become_minus_one_and_one() -> None:
    actions = np.random.default_rng(0).normal(2, 5, (500, 3))
    actions[:, 2] = 0.25  # never changes
    card = ActionCard.make(["x", "y", "z"], ["delta"] * 3, statistics=ActionStatistics.of(actions))
    scaling = ActionScaling.from_card(card)
    low, high = np.percentile(actions, [1, 99], axis=0)
    ends = scaling(torch.from_numpy(np.stack([low, high, (low + high) / 2, high + 100])))
    np.testing.assert_allclose(ends[:, :2], [[-1, -1], [1, 1], [0, 0], [1.5, 1.5]], atol=1e-6)
    assert ends[:, 2].tolist() == [0, 0, 0, 0]


def test_a_card_without_statistics_scales_nothing() -> None:
    with pytest.raises(UserError, match="no statistics"):
        ActionScaling.from_card(ActionCard.make(["x"], ["delta"]))
