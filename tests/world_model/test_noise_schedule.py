"""The noise schedule: no signal at the end, the identity of its two forms, and diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roboalign_ray.world_model.diffusion.noise_schedule import (
    clean_of,
    loss_weight,
    noisy,
    sample,
    times,
    velocity_of,
)


def test_at_time_one_nothing_of_the_clip_is_left() -> None:
    """Whatever the clip is, a network sees the same bits: it cannot read the target."""
    noise = torch.randn(3, 2, 1, 3, 8, 8)
    one = torch.ones(3)
    seen = [noisy(clip, noise, one) for clip in (torch.zeros_like(noise), 1e6 * torch.randn_like(noise))]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], noise)


def test_at_time_zero_the_clip_is_clean_and_between_them_the_path_is_straight() -> None:
    clip, noise = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    assert torch.equal(noisy(clip, noise, torch.zeros(2)), clip)
    path = [noisy(clip, noise, torch.full((2,), t, dtype=torch.float64)) for t in (0.2, 0.4, 0.6)]
    torch.testing.assert_close(path[1] - path[0], path[2] - path[1])
    torch.testing.assert_close((path[1] - path[0]) / 0.2, noise - clip)


def test_velocity_and_clean_clip_are_two_names_of_one_prediction() -> None:
    clip, noise, time = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.rand(5).double() + 0.01
    state = noisy(clip, noise, time)
    velocity = velocity_of(clip, state, time)
    torch.testing.assert_close(velocity, noise - clip)
    torch.testing.assert_close(clean_of(velocity, state, time), clip)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_denoiser_gives_the_clip_in_any_number_of_steps(steps: int) -> None:
    clip = torch.randn(2, 3, 4).double()
    asked: list[float] = []

    def perfect(state: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        asked.append(float(time[0]))
        return clip

    torch.testing.assert_close(sample(perfect, torch.randn_like(clip), steps), clip)
    assert asked == times(steps) == pytest.approx(np.linspace(1, 1 / steps, steps))


# By FlowMatchEulerDiscreteScheduler of diffusers 0.42.1: set_timesteps(sigmas=linspace(1, 1 / N, N)), then step()
# with the velocity (x - tanh(x) (1 - sigma / 2)) / sigma, from x = (1, -0.5, 2).
DIFFUSERS = {
    1: (0.3807971, -0.2310586, 0.4820138),
    2: (0.4486785, -0.2625563, 0.6343068),
    4: (0.4584343, -0.2712834, 0.6500557),
    5: (0.4573086, -0.2722163, 0.6452849),
}


@pytest.mark.parametrize("steps", DIFFUSERS)
def test_the_sampler_takes_the_steps_of_diffusers(steps: int) -> None:
    def denoise(state: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(state) * (1 - time / 2).view(-1, 1)

    made = sample(denoise, torch.tensor([[1.0, -0.5, 2.0]]), steps)
    torch.testing.assert_close(made, torch.tensor([DIFFUSERS[steps]]), atol=1e-6, rtol=0)


def test_the_path_is_that_of_diffusers() -> None:
    """scale_noise((1, 2), timestep 250 of 1000, (0.5, -1)) of the same scheduler is (0.875, 1.25)."""
    seen = noisy(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]]), torch.tensor([0.25]))
    assert seen.tolist() == [[0.875, 1.25]]


def test_loss_weight_in_closed_form() -> None:
    ratios = torch.tensor([0.1, 0.5, 1.0, 3.0])
    weights = loss_weight(ratios / (1 + ratios), limit=5.0)
    torch.testing.assert_close(weights, ((1 + ratios**2) / ratios**2).clamp_max(5.0))
    assert loss_weight(torch.tensor([1.0, 0.0]), 5.0).tolist() == [1.0, 5.0]
