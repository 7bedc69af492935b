"""Group-normalised advantages against the closed form, and what failures do to them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.advantages import DEVIATION_FLOOR, group_advantages
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Scored

rewards_lists = st.lists(st.floats(-100, 100, allow_nan=False), min_size=2, max_size=16)


def scores(values):
    return [Failed("lost") if value is None else Scored(value) for value in values]


def test_matches_the_standard_librarys_mean_and_deviation():
    rewards = [0.3, -1.2, 0.9, 0.1]
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    expected = [(reward - mean) / (deviation + DEVIATION_FLOOR) for reward in rewards]
    assert group_advantages(scores(rewards)).values.tolist() == pytest.approx(expected, rel=1e-12)


@given(st.floats(-1e6, 1e6), st.integers(2, 16))
def test_equal_rewards_give_exactly_zero(reward, size):
    result = group_advantages(scores([reward] * size))
    assert result.values.tolist() == [0.0] * size
    assert result.valid.all()
    assert not result.dropped


@given(rewards_lists)
def test_sum_is_zero_and_order_is_kept(rewards):
    values = group_advantages(scores(rewards)).values
    assert np.isfinite(values).all()
    assert abs(values.sum()) < 1e-6
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(values[order]) >= -1e-12).all()


@given(rewards_lists, st.floats(-50, 50))
def test_a_constant_added_to_all_rewards_changes_nothing(rewards, constant):
    shifted = [reward + constant for reward in rewards]
    np.testing.assert_allclose(
        group_advantages(scores(rewards)).values, group_advantages(scores(shifted)).values, atol=1e-6
    )


@given(rewards_lists, st.data())
def test_failed_samples_take_no_part(rewards, data):
    slots = data.draw(st.lists(st.integers(0, len(rewards)), min_size=1, max_size=4))
    with_failures = list(rewards)
    for slot in slots:
        with_failures.insert(slot, None)
    result = group_advantages(scores(with_failures))
    alive = [index for index, value in enumerate(with_failures) if value is not None]
    assert result.valid.tolist() == [value is not None for value in with_failures]
    np.testing.assert_array_equal(result.values[alive], group_advantages(scores(rewards)).values)
    assert not result.values[~result.valid].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_count_as_failed(bad):
    result = group_advantages([Scored(1.0), Scored(bad), Scored(2.0)])
    assert result.valid.tolist() == [True, False, True]
    assert np.isfinite(result.values).all()


@pytest.mark.parametrize("values", [[], [1.0], [None, None], [None, 3.0, None]])
def test_groups_with_fewer_than_two_valid_samples_are_dropped(values):
    result = group_advantages(scores(values))
    assert result.dropped
    assert not result.valid.any()
