"""Bootstrap intervals against scipy's bootstrap and against the normal interval of many episodes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.evaluation.bootstrap import bootstrap_mean, paired_difference


def test_equals_scipy_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40)
    ours = bootstrap_mean(values, resamples=20_000)
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    interval = reference.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=0.01)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.n == 40


def test_tends_to_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    ours = bootstrap_mean(values, resamples=5000)
    half = 1.959964 * values.std() / np.sqrt(values.size)
    assert (ours.low, ours.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 100))
def test_interval_holds_the_mean_stays_inside_the_values_and_repeats(values: list[float], seed: int) -> None:
    interval = bootstrap_mean(np.array(values), resamples=200, seed=seed)
    slack = 1e-6 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert bootstrap_mean(np.array(values), resamples=200, seed=seed) == interval


def test_undefined_episodes_are_left_out_and_counted() -> None:
    interval = bootstrap_mean(np.array([1.0, np.nan, 1.0]))
    assert (interval.mean, interval.low, interval.high, interval.n) == (1.0, 1.0, 1.0, 2)
    assert bootstrap_mean(np.array([np.nan])).n == 0


def test_pairing_removes_what_episodes_have_in_common() -> None:
    rng = np.random.default_rng(2)
    easy = rng.normal(0, 10, size=50)  # episodes differ far more than the two models do
    before, after = easy, easy + 0.5 + rng.normal(0, 0.1, size=50)
    paired = paired_difference(before, after)
    assert paired.difference.low > 0.4
    assert paired.wins == 1.0
    worse = paired_difference(before, after, lower_is_better=True)
    assert worse.wins == 0.0
    assert worse.difference == paired.difference
    assert paired_difference(before, before).wins == 0.5
    with pytest.raises(ValueError, match="shape"):
        paired_difference(before, after[:-1])
