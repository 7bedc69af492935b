"""Flow-GRPO's loss: against densities in NumPy, against its derivative, and on a Gaussian whose best mean is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from roboalign_ray.alignment.objectives.diffusion_nft import Predictions
from roboalign_ray.alignment.objectives.flow_grpo import flow_grpo_loss, gain, log_ratio, step_kl
from roboalign_ray.world_model.diffusion.noise_schedule import denoising_steps, fresh_deviation

NOW, FOLLOWING, LEVEL = 0.75, 0.5, 0.7
SETTINGS = {"clip": 0.02, "bound": 2.0, "kl_coefficient": 0.3}
ROWS, SHAPE = 6, (2, 3, 4)


def drawn(seed: int = 0, moved: float = 0.1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays = {name: generator.normal(size=(ROWS, *SHAPE)) for name in ("state", "old", "base", "z")}
    arrays["trained"] = arrays["old"] + moved * generator.normal(size=(ROWS, *SHAPE))
    return arrays | {"advantages": generator.normal(size=ROWS) * 2}


def mean_of(clean: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and deviation of the step: DDIM's with eta = a / sqrt(2), for signal 1 - t and noise t."""
    alpha, beta = 1 - np.array([NOW, FOLLOWING]), np.array([NOW, FOLLOWING])
    posterior = (beta[1] / beta[0]) * math.sqrt(beta[0] ** 2 - (alpha[0] / alpha[1]) ** 2 * beta[1] ** 2)
    deviation = LEVEL / math.sqrt(2) * posterior
    noise = (state - alpha[0] * clean) / beta[0]
    return alpha[1] * clean + math.sqrt(beta[1] ** 2 - deviation**2) * noise, deviation


def density(x: np.ndarray, mean: np.ndarray, deviation: float) -> float:
    """Mean log-density per value of a Gaussian with independent values."""
    return float(
        (-((x - mean) ** 2) / (2 * deviation**2) - math.log(deviation * math.sqrt(2 * math.pi))).mean()
    )


def reference(a: dict[str, np.ndarray], clip: float, bound: float, kl_coefficient: float) -> float:
    """The loss, one sample after the other."""
    total = 0.0
    for row in range(ROWS):
        mean, deviation = mean_of(a["trained"][row], a["state"][row])
        old, base = (mean_of(a[name][row], a["state"][row])[0] for name in ("old", "base"))
        sampled = old + deviation * a["z"][row]
        ratio = math.exp(density(sampled, mean, deviation) - density(sampled, old, deviation))
        advantage = min(max(a["advantages"][row], -bound), bound)
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        total -= min(ratio * advantage, clipped * advantage)
        total += kl_coefficient * ((mean - base) ** 2 / (2 * deviation**2)).mean()
    return total / ROWS


def slope() -> float:
    deviation = fresh_deviation(NOW, FOLLOWING, LEVEL)
    return gain(NOW, FOLLOWING, deviation) / deviation


def loss_of(a: dict[str, np.ndarray], live: np.ndarray | None = None, **changes: float):  # type: ignore[no-untyped-def]
    live = np.ones(ROWS) if live is None else live
    clean, trained, old, base, z = (torch.from_numpy(a[k]) for k in ("state", "trained", "old", "base", "z"))
    clips = Predictions(clean, trained.requires_grad_(), old, base, torch.full((ROWS,), NOW))
    settings = SETTINGS | changes
    loss, metrics = flow_grpo_loss(
        clips,
        z,
        slope(),
        torch.from_numpy(a["advantages"]),
        torch.from_numpy(live),
        clip=settings["clip"],
        bound=settings["bound"],
        kl_coefficient=settings["kl_coefficient"],
        count=int(live.sum()),
    )
    return loss, metrics, clips.trained


@pytest.mark.parametrize("moved", [0.0, 0.01, 0.3])
def test_the_loss_is_that_of_gaussian_densities(moved: float) -> None:
    arrays = drawn(moved=moved)
    assert (np.abs(arrays["advantages"]) > SETTINGS["bound"]).any()
    loss, metrics, _ = loss_of(arrays)
    assert float(loss.detach()) == pytest.approx(reference(arrays, **SETTINGS), rel=1e-9)
    assert (float(metrics["clip_fraction"]) > 0) == (moved == 0.3)


def test_the_kl_is_the_general_one_of_two_gaussians() -> None:
    """log(d2 / d1) + (d1^2 + (m1 - m2)^2) / (2 d2^2) - 1/2 with equal deviations; and 0 for equal predictions."""
    a = drawn(1)
    for row in range(ROWS):
        (mean, d), (base, _) = (mean_of(a[name][row], a["state"][row]) for name in ("trained", "base"))
        general = (np.log(d / d) + (d**2 + (mean - base) ** 2) / (2 * d**2) - 0.5).mean()
        trained, other = (torch.from_numpy(a[name][row : row + 1]) for name in ("trained", "base"))
        assert float(step_kl(trained, other, slope())) == pytest.approx(float(general), rel=1e-9)
        assert float(step_kl(other, other, slope())) == 0


def test_where_nothing_moved_the_ratio_is_one_and_only_advantages_have_a_gradient() -> None:
    a = drawn(2, moved=0.0)
    trained, old, z = (torch.from_numpy(a[name]) for name in ("trained", "old", "z"))
    assert torch.equal(log_ratio(trained, old, z, slope()).exp(), torch.ones(ROWS, dtype=torch.float64))
    loss, _, values = loss_of(a, kl_coefficient=0.0)
    loss.backward()
    kept = np.clip(a["advantages"], -2, 2)[:, None, None, None]
    score = slope() * a["z"] / np.prod(SHAPE)
    np.testing.assert_allclose(values.grad.numpy(), -kept * score / ROWS, rtol=1e-9)
    loss, _, values = loss_of(a | {"advantages": np.zeros(ROWS)}, kl_coefficient=0.0)
    loss.backward()
    assert not values.grad.any()


def test_a_ratio_beyond_the_clip_has_no_gradient_on_its_better_side() -> None:
    """Moved along the noise of good samples: their likelihood has grown far enough."""
    a = drawn(3, moved=0.0)
    a["trained"] = a["old"] + 0.2 * a["z"] / slope()
    ratio = log_ratio(*(torch.from_numpy(a[k]) for k in ("trained", "old", "z")), slope()).exp()
    assert bool((ratio > 1.02).all())
    loss, metrics, values = loss_of(a, kl_coefficient=0.0)
    loss.backward()
    moved = values.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == (a["advantages"] < 0).tolist()
    assert float(metrics["clip_fraction"]) == 1
    assert float(metrics["ratio_distance_max"]) == pytest.approx(float((ratio - 1).max()))


def test_samples_that_do_not_count_change_nothing() -> None:
    a = drawn(4)
    live = np.array([1.0, 0, 1, 1, 0, 1])
    loss, _, values = loss_of(a, live)
    loss.backward()
    changed = {k: v.copy() for k, v in a.items()}
    for name in ("trained", "z", "advantages"):
        changed[name][live == 0] += 1.0
    assert float(loss_of(changed, live)[0].detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert not values.grad[torch.from_numpy(live == 0)].any()


@pytest.mark.parametrize("target", [-1.0, 0.6])
def test_the_mean_of_a_gaussian_moves_to_the_best_place(target: float) -> None:
    """x_0 ~ N(m, 0.4^2) of two numbers, sampled in four steps by its exact denoiser; the reward is -|x - target|^2.

    The best m is the target, which the policy sees through its rewards alone.
    """
    torch.manual_seed(0)
    deviation, trained = 0.4, torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([trained], lr=0.03)

    def predicted(mean: torch.Tensor, state: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None]
        return mean + (1 - t) * deviation**2 / ((1 - t) ** 2 * deviation**2 + t**2) * (state - (1 - t) * mean)

    for _ in range(200):
        old, rows = trained.detach().clone(), 128
        fresh = {number: torch.randn(rows, 2) for number in (1, 2, 3)}
        steps = list(
            denoising_steps(
                lambda state, t, old=old: predicted(old, state, t),
                torch.randn(rows, 2),
                4,
                level=1.0,
                fresh=fresh.__getitem__,
            )
        )
        reward = -(steps[-1].clean - target).square().sum(1)
        advantages = (reward - reward.mean()) / reward.std()
        loss = torch.zeros(())
        for step in steps[:-1]:
            time = torch.full((rows,), step.now)
            now = predicted(trained, step.state, time)
            clips = Predictions(step.clean, now, step.clean, step.clean, time)
            slope_ = gain(step.now, step.following, step.deviation) / step.deviation
            part, _ = flow_grpo_loss(
                clips,
                fresh[step.number],
                slope_,
                advantages,
                torch.ones(rows),
                clip=0.1,
                bound=5.0,
                kl_coefficient=0.0,
                count=3 * rows,
            )
            loss = loss + part
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(trained.detach().numpy(), target, atol=0.12)
