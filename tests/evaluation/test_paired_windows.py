"""The sign test against the binomial distribution counted by hand, and pairs whose winner is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from roboalign_ray.evaluation.pairs import paired, sign_test
from roboalign_ray.evaluation.results import MetricCurves


@pytest.mark.parametrize("wins", range(7))
def test_the_sign_test_counts_all_coin_tosses(wins: int) -> None:
    """Of all 2^6 outcomes, the share at least as far from three wins."""
    gains = np.array([0.5] * wins + [-0.1] * (6 - wins))
    extreme = [abs(sum(tosses) - 3) >= abs(wins - 3) for tosses in product((0, 1), repeat=6)]
    found = sign_test(gains)
    assert (found.wins, found.losses, found.ties) == (wins, 6 - wins, 0)
    assert found.p == pytest.approx(np.mean(extreme))


def test_ties_and_undefined_windows_take_no_part() -> None:
    found = sign_test(np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, np.nan]))
    assert (found.wins, found.losses, found.ties) == (4, 0, 2)
    assert found.p == pytest.approx(2 / 16)
    assert sign_test(np.array([0.0, np.nan])).p == 1


def curves(psnr: list[float], lpips: list[float]) -> MetricCurves:
    per_frame = {"psnr": np.array(psnr)[:, None], "lpips": np.array(lpips)[:, None]}
    return MetricCurves(per_frame, np.zeros(len(psnr)), np.ones(len(psnr)), resamples=500)


def test_a_window_is_won_in_the_direction_of_the_metric() -> None:
    rival, method = curves([20, 21, 22], [0.1, 0.2, 0.3]), curves([21, 20, 25], [0.05, 0.1, 0.4])
    found = paired(rival, method, "psnr")
    assert (found.test.wins, found.test.losses) == (2, 1)
    assert found.change.difference.mean == pytest.approx(1.0)
    lpips = paired(rival, method, "lpips")
    assert (lpips.test.wins, lpips.test.losses) == (2, 1)
    assert lpips.change.wins == pytest.approx(2 / 3)
    assert lpips.change.difference.mean == pytest.approx(-0.05 / 3)
    assert lpips.as_json()["sign_test"] == {"wins": 2, "losses": 1, "ties": 0, "p": 1.0}


def test_runs_are_averaged_window_by_window_in_every_view() -> None:
    runs = [
        MetricCurves.over({"front": curves([20, 30], [0.1, 0.2]), "wrist": curves([10, 12], [0.3, 0.4])}),
        MetricCurves.over({"front": curves([22, 34], [0.3, 0.2]), "wrist": curves([14, 12], [0.3, 0.2])}),
    ]
    found = MetricCurves.averaged(runs)
    assert found.views["front"].per_episode("psnr").tolist() == [21, 32]
    assert found.views["wrist"].per_episode("psnr").tolist() == [12, 12]
    assert found.per_episode("psnr").tolist() == [16.5, 22]
    alone = MetricCurves.averaged([curves([20, 30], [0.1, 0.2]), curves([24, 30], [0.1, 0.4])])
    assert alone.per_episode("lpips") == pytest.approx([0.1, 0.3])
    assert not alone.views
