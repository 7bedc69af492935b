"""Wilson's interval against SciPy's, and against the equation that defines it."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, norm

from roboalign_ray.evaluation.proportions import wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 20), (3, 5), (16, 16), (7, 20), (499, 1000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_it_is_scipys(successes: int, trials: int, level: float) -> None:
    found = wilson(successes, trials, level)
    known = binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert (found.mean, found.n, found.level) == (successes / trials, trials, level)


def test_a_limit_is_the_share_from_which_the_observed_one_is_z_deviations_away() -> None:
    found, z = wilson(7, 20), norm.ppf(0.975)
    for limit in (found.low, found.high):
        assert abs(limit - 0.35) == pytest.approx(z * math.sqrt(limit * (1 - limit) / 20))


def test_no_trials_and_impossible_ones() -> None:
    assert math.isnan(wilson(0, 0).mean)
    for successes, trials in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes"):
            wilson(successes, trials)
