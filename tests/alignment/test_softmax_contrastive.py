"""Softmax-contrastive weights against their closed form, and the gradient that they give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from roboalign_ray.alignment.objectives.diffusion_nft import Predictions
from roboalign_ray.alignment.objectives.softmax_contrastive import contrastive_loss, softmax_weights


def test_weights_are_the_softmax_of_advantages_with_mean_one() -> None:
    """For two candidates it is a logistic function of their distance."""
    weights = softmax_weights(np.array([0.4, -0.4]), 3.0)
    assert weights[0] == pytest.approx(2 / (1 + math.exp(-2.4)), rel=1e-12)
    values = np.array([-1.0, 0.5, 0.2, 2.0])
    rewards = 0.01 * values + 7  # deviation .01: b of advantages is b / deviation of rewards
    direct = np.exp(150 * (rewards - 7)) / np.exp(150 * (rewards - 7)).sum()
    np.testing.assert_allclose(softmax_weights(values, 1.5), 4 * direct, rtol=1e-9)


def test_weights_follow_the_temperature_to_its_ends() -> None:
    values = np.array([-1.0, 0.5, 0.2, 2.0])
    np.testing.assert_allclose(softmax_weights(values, 1e-9), np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(softmax_weights(values, 1000.0), [0, 0, 0, 4], atol=1e-12)


def test_equal_advantages_have_no_weight() -> None:
    assert softmax_weights(np.zeros(5), 2.0).tolist() == [0.0] * 5
    assert softmax_weights(np.zeros(1), 2.0).tolist() == [0.0]


def test_each_candidate_draws_the_prediction_towards_itself_by_its_weight() -> None:
    """Closed form of the gradient, regulariser included."""
    generator = np.random.default_rng(0)
    clean, x, base = (generator.normal(size=(4, 3, 2)) for _ in range(3))
    time, weights = generator.uniform(0.2, 1, 4), softmax_weights(generator.normal(size=4), 1.3)
    live = np.array([1.0, 1, 0, 1])
    clips = Predictions(
        torch.from_numpy(clean),
        torch.from_numpy(x).requires_grad_(),
        torch.from_numpy(x),
        torch.from_numpy(base),
        torch.from_numpy(time),
    )
    loss, metrics = contrastive_loss(
        clips, torch.from_numpy(weights), torch.from_numpy(live), regulariser=0.2, count=5
    )
    loss.backward()
    squares = weights * ((x - clean) ** 2).mean((1, 2)) + 0.2 * ((x - base) ** 2).mean((1, 2)) / time**2
    assert float(loss.detach()) == pytest.approx((live * squares).sum() / 5, rel=1e-12)
    slope = weights[:, None, None] * (x - clean) + 0.2 * (x - base) / time[:, None, None] ** 2
    expected = 2 * live[:, None, None] * slope / 6 / 5
    np.testing.assert_allclose(clips.trained.grad.numpy(), expected, rtol=1e-9)  # type: ignore[union-attr]
    assert float(metrics["old_distance"]) == 0


def test_a_gaussian_moves_to_the_softmax_mean_of_its_samples() -> None:
    """The weighted denoising loss is least at the weighted mean of the candidates: exact for pure noise."""
    torch.manual_seed(1)
    candidates = torch.randn(1024, 1, dtype=torch.float64)
    advantages = candidates[:, 0].numpy()
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    weights = torch.from_numpy(softmax_weights(advantages, 1.0))
    ones = torch.ones(1024, dtype=torch.float64)
    for _ in range(60):
        trained = mean.expand(1024, 1)
        clips = Predictions(candidates, trained, trained.detach(), trained.detach(), ones)
        loss, _ = contrastive_loss(clips, weights, ones, regulariser=0.0, count=1024)
        (slope,) = torch.autograd.grad(loss, mean)
        with torch.no_grad():
            mean -= 0.4 * slope
    expected = float((weights * candidates[:, 0]).sum() / 1024)
    assert float(mean.detach()) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(1.0, abs=0.15)  # N(0, 1) tilted by exp(x) has mean 1
