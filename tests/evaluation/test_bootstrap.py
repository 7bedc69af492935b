"""Bootstrap intervals against scipy's bootstrap and against the normal interval of many episodes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.evaluation.bootstrap import (
    LEAST_EPISODES,
    bootstrap_mean,
    extent,
    paired_difference,
    resampling,
)


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


def test_copies_of_a_window_make_no_interval_narrower() -> None:
    values = np.random.default_rng(3).normal(size=LEAST_EPISODES)
    names = [f"e{number}" for number in range(LEAST_EPISODES)]
    alone = bootstrap_mean(values, episodes=names)
    copied = bootstrap_mean(np.tile(values, 4), episodes=names * 4)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.n == 4 * alone.n
    windows = bootstrap_mean(np.tile(values, 4))
    assert windows.high - windows.low < 0.7 * (copied.high - copied.low)  # half as wide, as over 32 values
    paired = paired_difference(np.zeros(4 * LEAST_EPISODES), np.tile(values, 4), episodes=names * 4)
    assert paired.difference == copied


def test_whole_episodes_are_drawn_whatever_their_number_of_windows() -> None:
    rng = np.random.default_rng(4)
    names = [f"e{number}" for number in range(10) for _ in range(1 + number % 3)]
    values = rng.normal(size=len(names)) + np.array([int(name[1:]) for name in names])
    by_name = {name: values[[other == name for other in names]] for name in dict.fromkeys(names)}
    drawn = rng.integers(10, size=(20_000, 10))
    groups = list(by_name.values())
    means = [np.concatenate([groups[number] for number in row]).mean() for row in drawn]
    found = bootstrap_mean(values, resamples=20_000, episodes=names)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=0.02)


def test_one_window_of_each_episode_gives_the_interval_over_windows() -> None:
    values = np.random.default_rng(5).normal(size=16)
    values[3] = np.nan
    assert bootstrap_mean(values, episodes=[str(n) for n in range(16)]) == bootstrap_mean(values)


def test_few_episodes_are_not_resampled() -> None:
    values = np.random.default_rng(6).normal(size=4 * (LEAST_EPISODES - 1))
    names = [f"e{number % (LEAST_EPISODES - 1)}" for number in range(len(values))]
    assert bootstrap_mean(values, episodes=names) == bootstrap_mean(values)
    with pytest.raises(ValueError, match="episodes for"):
        bootstrap_mean(values, episodes=names[1:])


def test_words_say_what_was_resampled() -> None:
    assert extent(16, 2) == "16 windows of 2 held-out episodes"
    assert extent(1, 1) == "1 window of 1 held-out episode"
    dependent = "Windows of one episode are not independent"
    assert "over episodes" in resampling(16, LEAST_EPISODES)
    assert dependent not in resampling(16, LEAST_EPISODES)
    assert "over windows" in resampling(16, LEAST_EPISODES - 1)
    assert dependent in resampling(16, LEAST_EPISODES - 1)
    assert dependent not in resampling(3, 3)


def test_undefined_windows_are_left_out_and_counted() -> None:
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
