"""The fidelity reward orders samples rightly, and a sample it cannot score is a failure, never a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roboalign_ray.config import FidelityRewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.metrics import frame_metrics as metrics
from roboalign_ray.metrics.perceptual import load_lpips
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import RewardInput, Scored


@pytest.fixture(scope="module")
def reward() -> FidelityReward:
    return FidelityReward(FidelityRewardConfig(lpips_weight=1.0, ssim_weight=0.5))


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)


def _inputs(generated: np.ndarray, real: np.ndarray | None) -> RewardInput:
    return RewardInput(instruction="", start=np.zeros((48, 48, 3), np.uint8), generated=generated, real=real)


def test_exact_beats_noisy_beats_noisier(reward: FidelityReward, real: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    samples = [np.clip(real + rng.normal(0, s, real.shape), 0, 255).astype(np.uint8) for s in (0, 20, 80)]
    scores = reward.score(_inputs(np.stack(samples), real))
    totals = [score.total for score in scores if isinstance(score, Scored)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == pytest.approx(0.5, abs=1e-4)  # LPIPS 0, SSIM 1


def test_total_is_the_weighted_sum_of_frame_means(reward: FidelityReward, real: np.ndarray) -> None:
    generated = np.random.default_rng(2).integers(0, 256, (1, *real.shape), dtype=np.uint8)
    (score,) = reward.score(_inputs(generated, real))
    a, b = metrics.to_images(generated[0]), metrics.to_images(real)
    with torch.no_grad():
        expected = 0.5 * metrics.ssim(a, b).mean() - load_lpips("alex")(a, b).mean()
    assert isinstance(score, Scored)
    assert score.total == pytest.approx(expected.item(), abs=1e-5)
    assert set(score.components) == {"lpips", "ssim", "psnr"}


def test_float_frames_score_like_bytes(reward: FidelityReward, real: np.ndarray) -> None:
    (a,) = reward.score(_inputs(real[None], real))
    (b,) = reward.score(_inputs(real[None] / 255.0, real / 255.0))
    assert isinstance(a, Scored)
    assert isinstance(b, Scored)
    assert a.total == pytest.approx(b.total, abs=1e-5)


def test_only_the_broken_sample_fails(reward: FidelityReward, real: np.ndarray) -> None:
    generated = np.stack([real, real]).astype(np.float32) / 255
    generated[0, 1, 2, 3, 0] = np.nan
    broken, whole = reward.score(_inputs(generated, real / 255.0))
    assert isinstance(broken, Failed)
    assert broken.kind == "nan"
    assert isinstance(whole, Scored)


@pytest.mark.parametrize(
    ("generated", "with_real", "kind"),
    [
        (np.zeros((2, 3, 48, 48, 3), np.uint8), False, "missing"),
        (np.zeros((2, 4, 48, 48, 3), np.uint8), True, "shape"),
        (np.zeros((2, 3, 48, 40, 3), np.uint8), True, "shape"),
        (np.zeros((2, 3, 48, 48), np.uint8), True, "shape"),
        (np.zeros((2, 3, 48, 48, 3), np.int64), True, "shape"),
        (np.full((2, 3, 48, 48, 3), np.inf), True, "nan"),
    ],
)
def test_what_cannot_be_compared_is_a_failure(
    generated: np.ndarray, with_real: bool, kind: str, reward: FidelityReward, real: np.ndarray
) -> None:
    scores = reward.score(_inputs(generated, real if with_real else None))
    assert len(scores) == 2
    assert all(isinstance(score, Failed) and score.kind == kind and score.reason for score in scores)


def test_images_too_small_for_lpips_fail(reward: FidelityReward) -> None:
    small = np.zeros((2, 16, 16, 3), np.uint8)
    (score,) = reward.score(_inputs(small[None], small))
    assert isinstance(score, Failed)


def test_a_random_backbone_rewards_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboalign_ray.metrics.perceptual.load_backbone", lambda _network: None)
    with pytest.raises(UserError, match=r"the alex backbone of LPIPS is not on this machine; .*random-alex"):
        FidelityReward(FidelityRewardConfig())
    assert not FidelityReward(FidelityRewardConfig(lpips_network="random-alex")).lpips.real
    assert not FidelityReward(FidelityRewardConfig(lpips_weight=0.0)).lpips.real


def test_a_random_backbone_is_random_also_where_the_real_one_is() -> None:
    assert not FidelityReward(FidelityRewardConfig(lpips_network="random-vgg")).lpips.real
