"""Actions: angles, increments and bins, against closed forms and invariants."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.episodes.action_kinds import accumulate_actions
from roboalign_ray.episodes.actions import ActionBinner, differences, unwrap_angles
from roboalign_ray.foundation.failures import UserError

finite = st.floats(-1e3, 1e3, width=32)


def fitted(actions: np.ndarray, bins: int) -> ActionBinner:
    """Bins of a card with the statistics of these actions."""
    dims = actions.shape[1]
    card = ActionCard.make(("x",) * dims, ("delta",) * dims, statistics=ActionStatistics.of(actions))
    return ActionBinner.from_card(card, bins)


def test_a_turning_wheel_unwraps_to_a_straight_line() -> None:
    turning = np.linspace(0.0, 9 * np.pi, 60)
    wrapped = np.stack([np.angle(np.exp(1j * turning)), turning], axis=1)
    unwrapped = unwrap_angles(wrapped, [0])
    np.testing.assert_allclose(unwrapped[:, 0], turning, atol=1e-9)
    np.testing.assert_array_equal(unwrapped[:, 1], turning)


def test_differences_cross_half_a_turn_the_short_way() -> None:
    poses = np.array([[3.1, 0.0], [-3.1, 1.0], [3.1, 3.0]])
    short = 2 * np.pi - 6.2
    np.testing.assert_allclose(differences(poses, [0]), [[short, 1], [-short, 2], [0, 0]], rtol=1e-5)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=finite),
    st.integers(1, 9),
)
def test_stride_loses_no_motion(actions: np.ndarray, stride: int) -> None:
    strided = accumulate_actions(actions, ("delta", "delta", "hold"), stride)
    np.testing.assert_allclose(
        strided[:, :2].sum(0), actions[:, :2].sum(0, dtype=np.float64), rtol=1e-4, atol=1e-2
    )
    ends = np.minimum(np.arange(0, len(actions), stride) + stride, len(actions)) - 1
    np.testing.assert_array_equal(strided[:, 2], actions[ends, 2])


@given(hnp.arrays(np.float64, (40, 2), elements=st.floats(-5, 5)), st.integers(2, 300))
def test_round_trip_is_within_half_a_bin(actions: np.ndarray, bins: int) -> None:
    binner = fitted(actions, bins)
    low, high = np.array(binner.low), np.array(binner.high)
    values = binner.to_values(binner.to_bins(actions))
    clipped = np.clip(actions, low, high)
    assert (np.abs(values - clipped) <= (high - low) / bins / 2 + 1e-5).all()
    assert (binner.to_bins(values)[:, low == high] == 0).all()


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=50), st.integers(2, 64))
def test_bins_never_fall_as_values_rise(values: list[float], bins: int) -> None:
    column = np.sort(np.array(values))[:, None]
    out = ActionBinner((-1.0,), (2.0,), bins).to_bins(column)[:, 0]
    assert (np.diff(out) >= 0).all()
    assert out.min() >= 0
    assert out.max() < bins


def test_centres_map_to_their_own_bin() -> None:
    binner = ActionBinner((-0.04, 0.0), (0.04, 1.0), 256)
    every = np.stack([np.arange(256)] * 2, axis=1)
    np.testing.assert_array_equal(binner.to_bins(binner.to_values(every)), every)


def test_one_outlier_does_not_squeeze_the_rest() -> None:
    actions = np.concatenate([np.linspace(-1, 1, 1000), [1e6]])[:, None]
    binner = fitted(actions, 100)
    assert len(np.unique(binner.to_bins(actions))) == 100


def test_a_constant_dimension_keeps_its_value() -> None:
    actions = np.stack([np.full(10, 0.7), np.arange(10.0)], axis=1)
    binner = fitted(actions, 8)
    assert (binner.to_bins(actions)[:, 0] == 0).all()
    np.testing.assert_allclose(binner.to_values(binner.to_bins(actions))[:, 0], 0.7, rtol=1e-6)


def test_bins_survive_a_file(tmp_path: Path) -> None:
    binner = ActionBinner((-0.1, 0.0), (0.3, 0.0), 17)
    binner.save(tmp_path)
    assert ActionBinner.load(tmp_path) == binner
    assert ActionBinner.from_state_dict(json.loads(json.dumps(binner.state_dict()))) == binner


def test_a_card_gives_bins_between_its_percentiles() -> None:
    """Of 0, 1, ... 1000 the 1st and 99th percentile are 10 and 990."""
    binner = fitted(np.arange(1001.0)[:, None], 7)
    assert binner == ActionBinner((10.0,), (990.0,), 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ActionBinner((0.0,), (1.0,), 4).to_bins(np.zeros((3, 2))), "2 dimensions, the bins 1"),
        (lambda: ActionBinner((0.0,), (1.0,), 4).to_bins(np.array([np.nan])), "not finite"),
        (lambda: ActionBinner((1.0,), (0.0,), 4), "low <= high"),
        (lambda: ActionBinner((0.0,), (float("inf"),), 4), "finite low and high"),
        (lambda: ActionBinner.from_card(ActionCard.make(("x",), ("delta",)), 4), "no actions"),
        (lambda: ActionBinner.load(Path("/nonexistent")), "no action bins"),
    ],
)
def test_bad_bins_are_told(call, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
