"""Metrics against scikit-image and against cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from roboalign_ray.config import EvaluationConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics import frame_metrics as metrics
from roboalign_ray.metrics import regions
from roboalign_ray.metrics.perceptual import PerceptualDistance, load_lpips


@pytest.fixture(scope="module")
def lpips() -> PerceptualDistance:
    return load_lpips("alex")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(11, 40),
    width=st.integers(11, 40),
    noise=st.floats(0.001, 1.0),
)
def test_ssim_psnr_mse_equal_scikit_image(seed: int, height: int, width: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    a = rng.random((height, width, 3))
    b = np.clip(a + noise * rng.normal(size=a.shape), 0, 1)
    ours_a, ours_b = metrics.to_images(a)[None], metrics.to_images(b)[None]
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
    )
    assert metrics.ssim(ours_a, ours_b).item() == pytest.approx(expected, abs=1e-5)
    assert metrics.psnr(ours_a, ours_b).item() == pytest.approx(
        peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3
    )
    assert metrics.mse(ours_a, ours_b).item() == pytest.approx(mean_squared_error(a, b), rel=1e-4)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_constant_images(level: int) -> None:
    """Flat images have no structure: SSIM is the luminance term alone."""
    a = metrics.to_images(np.full((1, 32, 32, 3), level, np.uint8))
    b = metrics.to_images(np.full((1, 32, 32, 3), 51, np.uint8))
    x, y, c1 = level / 255, 51 / 255, 0.01**2
    assert metrics.ssim(a, a).item() == pytest.approx(1.0)
    assert metrics.psnr(a, a).item() == pytest.approx(100.0)
    assert metrics.ssim(a, b).item() == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), abs=1e-5)
    assert metrics.psnr(a, b).item() == pytest.approx(-20 * np.log10(abs(x - y)), abs=1e-3)


def test_uint8_and_float_frames_agree() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    torch.testing.assert_close(metrics.to_images(frames), metrics.to_images(frames / 255.0))
    with pytest.raises(UserError, match="neither uint8 nor float"):
        metrics.to_images(frames.astype(np.int32))
    with pytest.raises(UserError, match="not"):
        metrics.to_images(frames[..., :2])


def _blinking_square(dilation: int) -> tuple[torch.Tensor, np.ndarray]:
    """A black clip in which one 4x4 square switches between 0 and 1: its standard deviation is 1/2."""
    clip = torch.zeros(6, 3, 32, 32)
    clip[::2, :, 10:14, 20:24] = 1
    expected = np.zeros((32, 32), bool)
    expected[10 - dilation : 14 + dilation, 20 - dilation : 24 + dilation] = True
    return clip, expected


@pytest.mark.parametrize("dilation", [0, 1, 2])
def test_motion_region_is_where_it_moves_and_a_margin(dilation: int) -> None:
    clip, expected = _blinking_square(dilation)
    np.testing.assert_array_equal(regions.motion_region(clip, 0.49, dilation).numpy(), expected)
    assert not regions.motion_region(clip, 0.51, dilation).any()


def test_roi_lpips_is_the_map_averaged_over_the_region(lpips: PerceptualDistance) -> None:
    rng = np.random.default_rng(1)
    real = rng.integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    real[:, :, 20:] = real[0, :, 20:]  # only the left part moves
    predicted = rng.integers(0, 256, (2, 4, 48, 48, 3), dtype=np.uint8)
    result = metrics.clip_metrics(predicted, real, real[0], lpips, EvaluationConfig(roi_threshold=0.05))
    maps = lpips.spatial(metrics.to_images(predicted[1]), metrics.to_images(real))
    deviation = (np.concatenate([real[:1], real]) / 255.0).std(axis=0).mean(axis=-1)
    rows, columns = np.nonzero(deviation > 0.05)
    inside = np.zeros((48, 48), bool)
    for row, column in zip(rows, columns, strict=True):
        inside[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True
    assert 0 < inside.sum() < inside.size
    expected = maps.numpy()[:, inside].mean(axis=1)
    np.testing.assert_allclose(result.per_frame["roi_lpips"][1], expected, rtol=1e-4)
    assert result.per_frame["lpips"].shape == (2, 4)


def test_still_clip_has_no_region_and_no_freeze_rate(lpips: PerceptualDistance) -> None:
    still = np.full((3, 32, 32, 3), 90, np.uint8)
    result = metrics.clip_metrics(still[None], still, still[0], lpips, EvaluationConfig())
    assert np.isnan(result.per_frame["roi_lpips"]).all()
    assert np.isnan(result.freeze_rate).all()
    assert np.isnan(result.motion).all()
    np.testing.assert_allclose(result.per_frame["lpips"], 0)


@pytest.mark.parametrize(("moves", "rate"), [(10, 0.0), (5, 0.5), (0, 1.0)])
def test_freeze_rate_counts_frames_that_stop(moves: int, rate: float) -> None:
    """The real clip brightens by 0.05 a frame; the prediction does so for `moves` of 10 frames, then stops."""
    ramp = torch.arange(1, 11) * 0.05
    real = ramp.view(10, 1, 1, 1).expand(10, 3, 16, 16)
    predicted = ramp.clamp_max(moves * 0.05 + 1e-9).view(1, 10, 1, 1, 1).expand(1, 10, 3, 16, 16)
    found = regions.freeze_rate(predicted, real, torch.zeros(3, 16, 16), threshold=0.1)
    assert found.item() == pytest.approx(rate)
    moved = regions.relative_motion(predicted, real, torch.zeros(3, 16, 16))
    assert moved.item() == pytest.approx(moves / 10, abs=1e-6)


def test_frames_where_the_real_clip_rests_do_not_count_as_frozen() -> None:
    real = torch.tensor([0.1, 0.1, 0.2, 0.2]).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    predicted = torch.tensor([0.1, 0.1, 0.1, 0.1]).view(1, 4, 1, 1, 1).expand(1, 4, 3, 8, 8)
    found = regions.freeze_rate(predicted, real, torch.zeros(3, 8, 8), threshold=0.1)
    assert found.item() == pytest.approx(0.5)  # two moving steps, the second one missed


def test_shapes_that_do_not_fit(lpips: PerceptualDistance) -> None:
    real = np.zeros((3, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="predicted, real and start"):
        metrics.clip_metrics(np.zeros((2, 4, 32, 32, 3), np.uint8), real, real[0], lpips, EvaluationConfig())
    with pytest.raises(UserError, match="11x11"):
        metrics.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
