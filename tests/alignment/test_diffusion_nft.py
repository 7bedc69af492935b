"""DiffusionNFT in clean clips: against NumPy in velocities, against its derivative, and on a Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roboalign_ray.alignment.objectives.diffusion_nft import (
    Predictions,
    nft_loss,
    nft_terms,
    optimality,
    velocity_regulariser,
)

SETTINGS = {"beta": 0.7, "bound": 5.0, "scale": 5.0, "regulariser": 0.3}


def drawn(rows: int = 6, seed: int = 0, **fixed: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Velocities and noisy clips float64 [B, 2, 3, 4] with times away from 0, and advantages beyond the bound too."""
    generator = np.random.default_rng(seed)
    shape = (rows, 2, 3, 4)
    arrays = {name: generator.normal(size=shape) for name in ("clean", "noise", "v", "v_old", "v_base")}
    arrays["time"] = generator.uniform(0.1, 1.0, rows)
    return arrays | fixed, generator.normal(size=rows) * 4


def in_velocities(
    a: dict[str, np.ndarray],
    advantages: np.ndarray,
    beta: float,
    bound: float,
    scale: float,
    regulariser: float,
) -> float:
    """The published loss, one sample after the other."""
    total = 0.0
    for row, t in enumerate(a["time"]):
        x0, noise = a["clean"][row], a["noise"][row]
        v, old, base = a["v"][row], a["v_old"][row], a["v_base"][row]
        x_t = (1 - t) * x0 + t * noise
        r = min(max(advantages[row] / bound, -1.0), 1.0) / 2 + 0.5
        plus = x_t - t * (beta * v + (1 - beta) * old)
        minus = x_t - t * ((1 + beta) * old - beta * v)
        for share, mixed in ((r / beta, plus), ((1 - r) / beta, minus)):
            weight = max(np.abs(mixed - x0).mean(), 1e-5)
            total += scale * share * ((mixed - x0) ** 2).mean() / weight
        total += regulariser * ((v - base) ** 2).mean()
    return total / len(a["time"])


def predictions(a: dict[str, np.ndarray]) -> Predictions:
    """Clean clips that the velocities stand for."""
    t = a["time"][:, None, None, None]
    x_t = (1 - t) * a["clean"] + t * a["noise"]
    clean, old, base = (torch.from_numpy(x_t - t * a[name]) for name in ("v", "v_old", "v_base"))
    return Predictions(
        torch.from_numpy(a["clean"]), clean.requires_grad_(), old, base, torch.from_numpy(a["time"])
    )


def loss_of(clips: Predictions, advantages: np.ndarray, live: np.ndarray | None = None, **changes: float):
    live = np.ones(len(advantages)) if live is None else live
    settings = SETTINGS | changes
    return nft_loss(
        clips,
        torch.from_numpy(advantages),
        torch.from_numpy(live),
        count=int(live.sum()),
        beta=settings["beta"],
        bound=settings["bound"],
        scale=settings["scale"],
        regulariser=settings["regulariser"],
    )


@pytest.mark.parametrize("beta", [0.1, 0.7, 1.0])
def test_clean_clips_give_the_published_loss_on_velocities(beta: float) -> None:
    arrays, advantages = drawn()
    assert (np.abs(advantages) > 5).any()
    assert (np.abs(advantages) < 5).any()
    loss, metrics = loss_of(predictions(arrays), advantages, beta=beta)
    expected = in_velocities(arrays, advantages, **(SETTINGS | {"beta": beta}))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)
    regulariser = float(metrics["base_velocity_distance"])
    assert regulariser == pytest.approx(((arrays["v"] - arrays["v_base"]) ** 2).mean(), rel=1e-10)
    assert float(loss.detach()) == pytest.approx(float(metrics["policy_loss"]) + 0.3 * regulariser, rel=1e-10)


def test_its_gradient_is_the_derivative_with_the_weights_held() -> None:
    arrays, advantages = drawn(seed=1)
    clips = predictions(arrays)
    loss_of(clips, advantages)[0].backward()
    x, old, base, x0 = (v.detach().numpy() for v in (clips.trained, clips.old, clips.base, clips.clean))
    beta, axes = SETTINGS["beta"], (1, 2, 3)
    plus, minus = beta * x + (1 - beta) * old - x0, (1 + beta) * old - beta * x - x0
    r = (np.clip(advantages / 5, -1, 1) / 2 + 0.5)[:, None, None, None]
    w_plus, w_minus = np.abs(plus).mean(axes, keepdims=True), np.abs(minus).mean(axes, keepdims=True)
    slope = 10 * (r * plus / w_plus - (1 - r) * minus / w_minus)
    slope += 2 * 0.3 * (x - base) / arrays["time"][:, None, None, None] ** 2
    np.testing.assert_allclose(clips.trained.grad.numpy(), slope / 24 / 6, rtol=1e-9)  # type: ignore[union-attr]


def test_without_advantages_the_policy_terms_have_no_gradient_at_the_old_policy() -> None:
    """And away from it they pull back to it."""
    arrays, _ = drawn(seed=2)
    arrays["v"] = arrays["v_old"].copy()
    clips = predictions(arrays)
    terms = nft_terms(clips, optimality(torch.zeros(6), 5.0), 0.7)
    terms.sum().backward()
    assert float(clips.trained.grad.abs().max()) < 1e-12  # type: ignore[union-attr]
    arrays["v"] = arrays["v_old"] + 0.3
    away = predictions(arrays)
    nft_terms(away, optimality(torch.zeros(6), 5.0), 0.7).sum().backward()
    back = (away.trained.grad * (away.trained - away.old)).flatten(1).sum(1)  # type: ignore[operator]
    assert bool((back > 0).all())  # descent lessens the distance, in every sample


def test_r_is_bounded_and_even_around_one_half() -> None:
    values = optimality(torch.tensor([-50.0, -5.0, -2.0, 0.0, 2.0, 5.0, 50.0]), 5.0)
    assert values.tolist() == pytest.approx([0.0, 0.0, 0.3, 0.5, 0.7, 1.0, 1.0])


def test_a_perfect_prediction_has_a_finite_gradient() -> None:
    """The weights are bounded from below."""
    arrays, advantages = drawn(seed=3)
    for name in ("v", "v_old", "v_base"):
        arrays[name] = arrays["noise"] - arrays["clean"]
    clips = predictions(arrays)
    loss, _ = loss_of(clips, advantages)
    loss.backward()
    assert float(loss.detach()) < 1e-8
    assert bool(torch.isfinite(clips.trained.grad).all())  # type: ignore[arg-type]


def test_samples_that_do_not_count_change_nothing() -> None:
    arrays, advantages = drawn(seed=4)
    live = np.array([1.0, 0, 1, 1, 0, 1])
    clips = predictions(arrays)
    loss, metrics = loss_of(clips, advantages, live)
    loss.backward()
    kept = live.astype(bool)
    some = {name: values[kept] for name, values in arrays.items()}
    alone, known = loss_of(predictions(some), advantages[kept])
    assert float(loss.detach()) == pytest.approx(float(alone.detach()), rel=1e-12)
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx({k: float(v) for k, v in known.items()})
    assert not clips.trained.grad[~torch.from_numpy(kept)].any()  # type: ignore[index]


def test_the_regulariser_of_velocities_grows_with_one_over_time_squared() -> None:
    clean = torch.zeros(2, 3)
    clips = Predictions(clean, clean + 2, clean, clean, torch.tensor([1.0, 0.25]))
    assert velocity_regulariser(clips).tolist() == [4.0, 64.0]


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_mean_of_a_gaussian_moves_to_the_side_that_the_reward_prefers(side: float) -> None:
    """x ~ N(m, s^2) of two numbers; its optimal clean prediction is affine in m. The reward sees the first alone.

    Samples come from the old policy, an average of the trained one, as in a run.
    """
    torch.manual_seed(0)
    deviation, trained, old = 0.5, torch.zeros(2, requires_grad=True), torch.zeros(2)
    optimizer = torch.optim.Adam([trained], lr=0.02)

    def predicted(mean: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E[x_0 | x_t], by Gaussian conditioning."""
        gain = (1 - t) * deviation**2 / ((1 - t) ** 2 * deviation**2 + t**2)
        return mean + gain * (x_t - (1 - t) * mean)

    for _ in range(150):
        x0 = old + deviation * torch.randn(256, 2)
        reward = side * x0[:, 0]
        advantages = (reward - reward.mean()) / reward.std()
        time = torch.rand(256) * 0.9 + 0.1
        t = time[:, None]
        x_t = (1 - t) * x0 + t * torch.randn(256, 2)
        clips = Predictions(
            x0,
            predicted(trained, x_t, t),
            predicted(old, x_t, t),
            predicted(torch.zeros(2), x_t, t),
            time,
        )
        loss, _ = nft_loss(
            clips, advantages, torch.ones(256), beta=1.0, bound=5.0, scale=5.0, regulariser=0.0, count=256
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        old = 0.8 * old + 0.2 * trained.detach()
    moved, other = trained.detach().tolist()
    assert side * moved > 2 * deviation
    assert abs(other) < 0.3 * abs(moved)
