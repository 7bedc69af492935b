"""The noise schedule: no signal at the end, the identity of its two forms, diffusers' scheduler, and fresh noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from roboalign_ray.world_model.diffusion.noise_schedule import (
    clean_of,
    denoising_steps,
    fresh_deviation,
    loss_weight,
    noisy,
    sample,
    step_mean,
    times,
    velocity_of,
)

LEVELS = (0.0, 0.7, 1.4142)


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


# --- fresh noise in the steps ----------------------------------------------------------------------------------------


def gaussian_marginals(level: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest errors of mean and variance over all times, of samples of x_0 ~ N(2, 0.3^2) by its exact denoiser.

    Every step is affine in the state, so mean and variance go through it in closed form. On the path they are
    (1 - t) 2 and (1 - t)^2 0.3^2 + t^2.
    """
    centre, variance = 2.0, 0.3**2

    def denoise(state: torch.Tensor, t: float) -> torch.Tensor:
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return centre + gain * (state - (1 - t) * centre)

    mean, spread, errors = 0.0, 1.0, []
    schedule = times(steps)
    for now, following in pairwise(schedule):
        deviation = fresh_deviation(now, following, level)
        at = torch.tensor([0.0, 1.0], dtype=torch.float64)
        offset, end = step_mean(denoise(at, now), at, now, following, deviation).tolist()
        mean, spread = offset + (end - offset) * mean, (end - offset) ** 2 * spread + deviation**2
        wanted = (1 - following) ** 2 * variance + following**2
        errors.append((abs(mean - (1 - following) * centre), abs(spread - wanted)))
    return np.max(errors, axis=0)


@pytest.mark.parametrize("level", LEVELS)
def test_with_and_without_fresh_noise_the_marginals_are_those_of_the_path(level: float) -> None:
    """The error of mean and variance goes to 0 with the steps' length, for the SDE as for the ODE."""
    coarse, fine, finest = (gaussian_marginals(level, steps) for steps in (50, 200, 800))
    assert (finest < 0.01).all()
    assert (fine < 0.4 * coarse + 1e-9).all()
    assert (finest < 0.4 * fine + 1e-9).all()


@pytest.mark.parametrize("level", LEVELS)
def test_a_known_clip_keeps_its_coefficients_in_steps_of_any_length(level: float) -> None:
    """x_u = (1 - u) x_0 + u noise exactly, where the denoiser knows x_0: its variance is u^2."""
    clean = torch.tensor([1.5], dtype=torch.float64)
    for steps in (2, 3, 10):
        mean, spread = torch.zeros(1, dtype=torch.float64), 1.0
        schedule = times(steps)
        for now, following in pairwise(schedule):
            deviation = fresh_deviation(now, following, level)
            moved = step_mean(clean, mean + 1, now, following, deviation)
            mean = step_mean(clean, mean, now, following, deviation)
            spread = float(moved - mean) ** 2 * spread + deviation**2
            assert float(mean) == pytest.approx((1 - following) * 1.5)
            assert spread == pytest.approx(following**2)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_short_steps_have_the_drift_and_the_noise_of_flow_grpos_equation(t: float) -> None:
    level, length = 0.7, 1e-5
    generator = np.random.default_rng(0)
    state, clean = generator.normal(size=(2, 6))
    velocity, squared = (state - clean) / t, level**2 * t / (1 - t)
    drift = velocity + squared / (2 * t) * (state + (1 - t) * velocity)
    deviation = fresh_deviation(t, t - length, level)
    made = step_mean(torch.from_numpy(clean), torch.from_numpy(state), t, t - length, deviation).numpy()
    np.testing.assert_allclose((made - state) / -length, drift, rtol=1e-2, atol=1e-3)
    assert deviation**2 / length == pytest.approx(squared, rel=1e-3)


def test_fresh_noise_is_finite_at_time_one_and_absent_from_the_last_step() -> None:
    assert fresh_deviation(1.0, 0.5, 0.7) == pytest.approx(0.7 / 2**0.5 * 0.5)
    assert fresh_deviation(0.5, 0.0, 0.7) == 0
    assert fresh_deviation(1.0, 0.5, 0.0) == 0
    asked: list[int] = []

    def fresh(number: int) -> torch.Tensor:
        asked.append(number)
        return torch.zeros(2, 3)

    steps = list(denoising_steps(lambda state, t: state / 2, torch.ones(2, 3), 4, level=0.7, fresh=fresh))
    assert asked == [1, 2, 3]
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert [step.deviation > 0 for step in steps] == [True, True, True, False]


def test_without_fresh_noise_a_step_is_eulers() -> None:
    state, clean = torch.randn(2, 5).double()
    euler = state + (0.25 - 0.75) * velocity_of(clean[None], state[None], torch.tensor([0.75]))[0]
    torch.testing.assert_close(step_mean(clean, state, 0.75, 0.25, 0.0), euler)
