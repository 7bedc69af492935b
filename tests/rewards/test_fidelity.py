"""The fidelity reward against scikit-image, and against LPIPS worked out in NumPy over a backbone of one's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from roboalign_ray.config import FidelityRewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.metrics.perceptual import PerceptualDistance
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import RewardInput, Scored

SAMPLES, FRAMES, VIEWS, HEIGHT, WIDTH = 3, 2, 2, 40, 48
LPIPS_WEIGHT, SSIM_WEIGHT = 2.0, 0.5
HEADS = np.array([0.2, 0.3, 0.5])
# Means and deviations of the published LPIPS, on images from -1 to 1.
SHIFT, SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])


class Itself(nn.Module):
    """A backbone whose only features are the three channels that it is shown."""

    def forward(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        return [images_BCHW]


def lpips_by_hand(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    """LPIPS of two uint8 pictures over `Itself` and `HEADS`, step by step as in the paper's equation 1."""

    def unit(pixels: np.ndarray) -> np.ndarray:
        shown = (2 * (pixels.astype(np.float64) / 255) - 1 - SHIFT) / SCALE
        return shown / np.linalg.norm(shown, axis=-1, keepdims=True)

    return float((HEADS * (unit(a_HWC) - unit(b_HWC)) ** 2).sum(-1).mean())


def ssim_by_skimage(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    return float(
        structural_similarity(
            a_HWC,
            b_HWC,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


@pytest.fixture(scope="module")
def inputs() -> RewardInput:
    """Ramps with a square that moves; every sample, frame and view is disturbed by an amount of its own."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    real = np.empty((FRAMES, VIEWS, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(FRAMES):
        for v in range(VIEWS):
            real[t, v] = np.stack([40 + 3 * rows, 30 + 4 * columns, rows + columns + 60 * v], axis=-1)
            real[t, v, 8 + 5 * t : 20 + 5 * t, 10:22] = (230, 40, 90)
    noise = rng.normal(0, 1, (SAMPLES, *real.shape))
    amount = rng.uniform(2, 60, (SAMPLES, FRAMES, VIEWS, 1, 1, 1))
    generated = np.clip(real + amount * noise, 0, 255).astype(np.uint8)
    return RewardInput("", start=real[0], generated=generated, real=real)


@pytest.fixture(scope="module")
def reward() -> FidelityReward:
    config = FidelityRewardConfig(lpips_weight=LPIPS_WEIGHT, ssim_weight=SSIM_WEIGHT)
    heads = [torch.tensor(HEADS, dtype=torch.float32)]
    return FidelityReward(config, PerceptualDistance("alex", Itself(), heads, real=False))  # type: ignore[arg-type]


def scored(reward: FidelityReward, inputs: RewardInput) -> list[Scored]:
    scores = reward.score(inputs)
    assert all(isinstance(score, Scored) for score in scores)
    return scores  # type: ignore[return-value]


def test_every_frame_of_every_sample_is_worth_what_the_references_say(reward, inputs) -> None:
    for sample, score in enumerate(scored(reward, inputs)):
        pairs = [
            (inputs.generated[sample, t, v], inputs.real[t, v]) for t in range(FRAMES) for v in range(VIEWS)
        ]
        ssim = np.array([ssim_by_skimage(a, b) for a, b in pairs]).reshape(FRAMES, VIEWS)
        lpips = np.array([lpips_by_hand(a, b) for a, b in pairs]).reshape(FRAMES, VIEWS)
        expected = (SSIM_WEIGHT * ssim - LPIPS_WEIGHT * lpips).mean(axis=1)
        np.testing.assert_allclose(score.per_frame, expected, atol=2e-5)
        assert score.total == pytest.approx(expected.mean(), abs=2e-5)
        assert score.components["ssim"] == pytest.approx(ssim.mean(), abs=1e-5)
        assert score.components["lpips"] == pytest.approx(lpips.mean(), abs=1e-5)


def test_psnr_is_told_beside_them_and_weighs_what_it_is_given(reward, inputs) -> None:
    worse = np.broadcast_to(inputs.real, inputs.generated.shape) // 2 + 10
    [first, *_] = scored(reward, replace(inputs, generated=worse))
    errors = ((worse[0].astype(np.float64) - inputs.real) ** 2).mean(axis=(2, 3, 4))
    assert first.components["psnr"] == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-4)
    assert set(first.components) == {"lpips", "ssim", "psnr"}
    weighed = FidelityReward(reward.config.model_copy(update={"psnr_weight": 0.02}), reward.lpips)
    [more, *_] = scored(weighed, replace(inputs, generated=worse))
    assert more.total - first.total == pytest.approx(0.02 * first.components["psnr"], abs=1e-5)


def test_a_copy_gets_the_weight_of_ssim_and_each_disturbance_costs_more(reward, inputs) -> None:
    noise = np.random.default_rng(1).normal(0, 1, inputs.real.shape)
    samples = [np.clip(inputs.real + s * noise, 0, 255).astype(np.uint8) for s in (0, 10, 30, 90)]
    totals = [score.total for score in scored(reward, replace(inputs, generated=np.stack(samples)))]
    assert totals[0] == pytest.approx(SSIM_WEIGHT, abs=1e-6)
    assert all(better - worse > 0.01 for better, worse in pairwise(totals))


def test_long_clips_are_compared_frame_by_frame_like_short_ones(reward, inputs) -> None:
    """More frames than fit into one pass of the network, each its own."""
    many = np.concatenate([inputs.generated] * 8, axis=1), np.concatenate([inputs.real] * 8)
    long = scored(reward, replace(inputs, generated=many[0], real=many[1]))
    assert long[0].per_frame is not None
    assert many[0][:, :, :, 0, 0, 0].size > 64
    for short, score in zip(scored(reward, inputs), long, strict=True):
        np.testing.assert_allclose(score.per_frame, np.tile(short.per_frame, 8), atol=1e-6)


FAULTS = {
    "missing": {"real": None},
    "shape": {"real": np.zeros((FRAMES + 1, VIEWS, HEIGHT, WIDTH, 3), np.uint8)},
    "shape ": {"generated": np.zeros((SAMPLES, FRAMES, HEIGHT, WIDTH, 3), np.uint8)},
    "shape  ": {"generated": np.zeros((SAMPLES, FRAMES, VIEWS, HEIGHT, WIDTH, 3), np.float32)},
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_cannot_be_compared_is_a_failure(kind: str, reward, inputs) -> None:
    scores = reward.score(replace(inputs, **FAULTS[kind]))
    assert len(scores) == SAMPLES
    assert all(isinstance(score, Failed) and score.kind == kind.strip() and score.reason for score in scores)


def test_images_too_small_for_lpips_fail(reward) -> None:
    small = np.zeros((2, 1, 31, 40, 3), np.uint8)
    [score] = reward.score(RewardInput("", small[0], small[None], small))
    assert isinstance(score, Failed)
    assert "31x40 are below LPIPS' 32 pixels" in score.reason


def test_a_random_backbone_rewards_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboalign_ray.metrics.perceptual.load_backbone", lambda _network: None)
    with pytest.raises(UserError, match=r"the alex backbone of LPIPS is not on this machine; .*random-alex"):
        FidelityReward(FidelityRewardConfig())
    assert not FidelityReward(FidelityRewardConfig(lpips_network="random-alex")).lpips.real
    assert not FidelityReward(FidelityRewardConfig(lpips_weight=0.0)).lpips.real


def test_a_random_backbone_is_random_also_where_the_real_one_is() -> None:
    assert not FidelityReward(FidelityRewardConfig(lpips_network="random-vgg")).lpips.real
