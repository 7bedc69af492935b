"""FVD: the distance against scipy's matrix root, the network against its known figure."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics import fvd


@pytest.mark.parametrize("clips", [3, 40])
def test_frechet_distance_equals_the_matrix_root_form(clips: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(clips, 8)), rng.normal(1, 2, size=(clips + 5, 8))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b + 1e-12 * np.eye(8)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert fvd.frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert fvd.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(30, 7, 2), (31, 7, 2), (14, 2, 2), (15, 3, 2), (9, 3, 1)]
)
def test_same_padding_gives_the_ceiling(size: int, kernel: int, stride: int) -> None:
    x = torch.zeros(1, 1, size, size, size)
    padded = fvd._same_padding(x, (kernel,) * 3, (stride,) * 3)
    assert (padded.shape[2] - kernel) // stride + 1 == -(-size // stride)


def test_black_against_white_gives_the_known_figure() -> None:
    if not fvd.I3D_NETWORK.present():
        pytest.skip("the I3D network is not on this machine: roboalign assets fetch --fvd")
    network = fvd.load_i3d()
    black = np.zeros((2, 15, 64, 64, 3), np.uint8)
    assert fvd.fvd(black, np.full_like(black, 255), network) == pytest.approx(134, abs=0.5)


def test_absent_network_names_the_remedy(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOALIGN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="assets fetch --fvd"):
        fvd.load_i3d()


def test_clips_too_short() -> None:
    with pytest.raises(UserError, match="at least 9"):
        fvd.video_features(np.zeros((2, 8, 16, 16, 3), np.uint8), fvd.InflatedInception())
