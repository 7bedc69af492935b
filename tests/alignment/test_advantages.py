"""Group-normalised advantages against the closed form, and what failures do to them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.advantages import DEVIATION_FLOOR, frame_advantages, group_advantages
from roboalign_ray.foundation.failures import Failed, UserError
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


def per_frame(rows):
    return [Scored(float(np.mean(row)), per_frame=np.asarray(row, dtype=float)) for row in rows]


def test_frame_credit_is_the_discounted_mean_of_what_follows():
    rows = np.array([[1.0, 0.0, 4.0], [0.0, 2.0, 1.0], [3.0, 1.0, 1.0]])
    returns = np.stack(
        [
            (rows[:, 0] + 0.5 * rows[:, 1] + 0.25 * rows[:, 2]) / 1.75,
            (rows[:, 1] + 0.5 * rows[:, 2]) / 1.5,
            rows[:, 2],
        ],
        axis=1,
    )
    expected = (returns - returns.mean(0)) / (returns.std(0, ddof=1) + 1e-4)
    np.testing.assert_allclose(frame_advantages(per_frame(rows), 0.5).values, expected, rtol=1e-12)


def test_frame_credit_of_one_frame_is_group_credit():
    rows = [[0.3], [0.1], [0.9], [0.4]]
    np.testing.assert_allclose(
        frame_advantages(per_frame(rows)).values[:, 0], group_advantages(per_frame(rows)).values, rtol=1e-12
    )


def test_what_happened_before_a_frame_does_not_change_its_credit():
    rows = np.random.default_rng(0).normal(size=(5, 4))
    other = rows.copy()
    other[:, 0] = np.random.default_rng(1).normal(size=5)
    before, after = (frame_advantages(per_frame(r), 0.9).values for r in (rows, other))
    np.testing.assert_array_equal(before[:, 1:], after[:, 1:])
    assert (before[:, 0] != after[:, 0]).any()


def test_frame_credit_leaves_failures_out_and_equal_frames_at_zero():
    scores = [*per_frame([[1.0, 2.0], [1.0, 5.0]]), Failed("no", "scorer")]
    result = frame_advantages(scores, 0.0)
    assert result.valid.tolist() == [True, True, False]
    assert result.values[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert result.values[0, 1] == -result.values[1, 1] < 0
    assert frame_advantages(scores[1:]).dropped


def test_frame_credit_needs_a_reward_that_tells_frames_apart():
    with pytest.raises(UserError, match="judges clips as a whole"):
        frame_advantages([Scored(1.0), Scored(2.0)])
