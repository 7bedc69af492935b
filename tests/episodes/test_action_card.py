"""The action card: its hash, its file, and what becomes of it where frames are skipped, against sums by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from roboalign_ray.episodes.action_card import ACTION_CARD, ActionCard, ActionStatistics
from roboalign_ray.episodes.action_kinds import ACTION_KINDS, accumulate_actions
from roboalign_ray.foundation.failures import UserError

FIGURES = ActionStatistics.of(np.array([[0.0, 1.0], [0.5, -1.0], [1.0, 1.0], [0.25, 1.0]]))


def card(**changes: Any) -> ActionCard:
    fields = {
        "labels": ("delta_x [m]", "gripper [-1 open, 1 closed]"),
        "kinds": ("delta", "hold"),
        "bounds": ((-0.08, 0.08), (-1.0, 1.0)),
        "stride": 1,
        "rate": 10.0,
        "embodiments": ("sawyer",),
        "statistics": FIGURES,
    }
    return ActionCard.make(**{**fields, **changes})


# --- identity ------------------------------------------------------------------------------------------------------


def test_the_hash_does_not_change() -> None:
    """Written files name it: another value here makes every card that exists unreadable."""
    assert card().hash == "fcae27c2c1edfd93"
    unknown = ActionCard.make(("action[0]",), ("unknown",))
    assert unknown.hash == "0b5c11fea4cc7f47"


CHANGES: dict[str, dict[str, Any]] = {
    "name": {"labels": ("x [m]", "gripper [-1 open, 1 closed]")},
    "unit": {"labels": ("delta_x [mm]", "gripper [-1 open, 1 closed]")},
    "no unit": {"labels": ("delta_x", "gripper [-1 open, 1 closed]")},
    "order": {"labels": ("gripper [-1 open, 1 closed]", "delta_x [m]")},
    "kind": {"kinds": ("delta", "toggle")},
    "bounds": {"bounds": ((-0.08, 0.09), (-1.0, 1.0))},
    "no bounds": {"bounds": (None, (-1.0, 1.0))},
    "stride": {"stride": 2},
    "no stride": {"stride": None},
    "rate": {"rate": 5.0},
    "no rate": {"rate": None},
    "robot": {"embodiments": ("franka",)},
    "robots": {"embodiments": ("franka", "sawyer")},
    "no robot": {"embodiments": ()},
}


def test_every_field_but_the_statistics_changes_the_hash() -> None:
    hashes = {name: card(**change).hash for name, change in CHANGES.items()}
    assert len({card().hash, *hashes.values()}) == len(CHANGES) + 1
    others = ActionStatistics.of(np.array([[7.0, 8.0]]))
    assert card(statistics=others).hash == card(statistics=None).hash == card().hash


def test_rounding_of_a_bound_and_the_order_of_robots_do_not_change_the_hash() -> None:
    third = card(bounds=((-0.1 - 0.2, 0.1 + 0.2), None), embodiments=("b", "a", "b"))
    assert third.hash == card(bounds=((-0.3, 0.3), None), embodiments=("a", "b")).hash
    assert third.embodiments == ("a", "b")


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"statistics": None}, *CHANGES.values()])
def test_a_card_is_read_as_it_was_written(change: dict[str, Any], tmp_path: Path) -> None:
    card(**change).save(tmp_path)
    assert ActionCard.load(tmp_path) == card(**change)
    told = json.loads((tmp_path / ACTION_CARD).read_text())
    assert told["hash"] == card(**change).hash
    del told["hash"]
    (tmp_path / ACTION_CARD).write_text(json.dumps(told))
    assert ActionCard.load(tmp_path) == card(**change)


def test_a_folder_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    assert ActionCard.load(tmp_path) is None


STATISTICS = FIGURES.model_dump(mode="json")
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": 2}, "format 2, this version reads 1"),
    "no format": ({"format": None}, "format None"),
    "another hash": ({"hash": "0" * 16}, "that of its fields"),
    "a hash that is none": ({"hash": [1]}, "that of its fields"),
    "an edited field": ({"rate": 5.0}, "that of its fields"),
    "an unknown field": ({"colour": "red"}, "colour: Extra inputs"),
    "no dimension": (
        {"names": [], "units": [], "kinds": [], "bounds": []},
        "names: Tuple should have at least",
    ),
    "no names": ({"names": None}, "names: "),
    "an empty name": ({"names": ["", "x"]}, r"names\.0"),
    "a name without end": ({"names": ["x" * 70_000, "x"]}, r"names\.0"),
    "too few units": ({"units": ["m"]}, "1 units for 2 names"),
    "too many kinds": ({"kinds": ["delta"] * 3}, "3 kinds for 2 names"),
    "a kind that is none": ({"kinds": ["delta", "sideways"]}, r"kinds\.1"),
    "too few bounds": ({"bounds": [None]}, "1 bounds for 2 names"),
    "bounds upside down": ({"bounds": [[1, -1], None]}, "lower bound lies above"),
    "three bounds": ({"bounds": [[1, 2, 3], None]}, r"bounds\.0"),
    "bounds without end": ({"bounds": [[-math.inf, 1], None]}, r"bounds\.0"),
    "no stride": ({"stride": 0}, "stride: "),
    "a stride without end": ({"stride": 2**80}, "stride: "),
    "half a stride": ({"stride": 1.5}, "stride: "),
    "a negative rate": ({"rate": -1}, "rate: "),
    "a rate that is no number": ({"rate": math.nan}, "rate: "),
    "robots not in order": ({"embodiments": ["b", "a"]}, "not sorted"),
    "statistics of one dimension": (
        {"statistics": {key: value if key == "frames" else value[:1] for key, value in STATISTICS.items()}},
        "another number of dimensions",
    ),
    "percentiles upside down": ({"statistics": {**STATISTICS, "p01": [9, 9]}}, "low figure lies above"),
    "a negative deviation": ({"statistics": {**STATISTICS, "std": [-1, 0]}}, "deviation is negative"),
    "statistics of nothing": ({"statistics": {**STATISTICS, "frames": 0}}, r"statistics\.frames"),
    "a figure too many": ({"statistics": {**STATISTICS, "p50": [0, 0]}}, r"statistics\.p50"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_card_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, expected = HOSTILE[name]
    path = tmp_path / ACTION_CARD
    path.write_text(json.dumps({**card().as_json(), **change}))
    with pytest.raises(UserError, match=expected) as caught:
        ActionCard.load(tmp_path)
    assert caught.value.line().startswith(f"{path}: cannot be read as action card")
    assert "\n" not in caught.value.line()


def test_a_card_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        card().rate = 3.0  # type: ignore[misc]


# --- frames skipped ------------------------------------------------------------------------------------------------

COMBINED = [kind for kind in ACTION_KINDS if kind not in ("unknown", "delta_rotation")]


def by_hand(column: np.ndarray, kind: str, stride: int) -> np.ndarray:
    """What a column becomes, group by group in plain Python; whole groups alone."""
    out = []
    for start in range(0, len(column) - stride + 1, stride):
        group = [float(value) for value in column[start : start + stride]]
        if kind in ("delta", "delta_angle"):
            out.append(sum(group))
        elif kind == "velocity":
            out.append(sum(group) / stride)
        elif kind in ("toggle", "event"):
            given = [value for value in group if value != 0]
            out.append(given[-1] if given else 0.0)
        else:
            out.append(group[-1])
    return np.array(out)


@given(data=st.data(), kind=st.sampled_from(COMBINED), stride=st.integers(1, 7), groups=st.integers(1, 6))
def test_a_strided_card_bounds_the_motion_summed_by_hand_and_no_more(data, kind, stride, groups) -> None:
    low = data.draw(st.integers(-8, 8))
    high = data.draw(st.integers(low, 9))
    commands = st.sampled_from([0, 1]) if kind in ("toggle", "event") else st.integers(low, high)
    if kind in ("toggle", "event"):
        low, high = 0, 1
    values = data.draw(st.lists(commands, min_size=groups * stride, max_size=groups * stride))
    column = np.array(values, np.float32)[:, None]
    before = ActionCard.make(("x",), (kind,), bounds=((low, high),), stride=2, rate=30.0)
    after = before.strided(stride)
    motion = by_hand(column[:, 0], kind, stride)
    np.testing.assert_allclose(accumulate_actions(column, (kind,), stride)[:, 0], motion, rtol=1e-6)
    (bounds,) = after.bounds
    assert bounds is not None
    assert bounds[0] - 1e-6 <= motion.min()
    assert motion.max() <= bounds[1] + 1e-6
    for extreme, bound in ((low, bounds[0]), (high, bounds[1])):
        held = by_hand(np.full(stride, extreme, np.float32), kind, stride)
        assert held[0] == pytest.approx(bound)
    assert after.stride == 2 * stride
    assert after.rate == pytest.approx(30.0 / stride)
    assert after.source_rate == pytest.approx(60.0)
    assert after.kinds == before.kinds
    assert after.names == before.names


@given(first=st.integers(1, 5), second=st.integers(1, 5))
def test_two_strides_are_their_product(first: int, second: int) -> None:
    whole = card(statistics=None)
    assert whole.strided(first).strided(second).hash == whole.strided(first * second).hash


@pytest.mark.parametrize("kind", ["unknown", "delta_rotation"])
def test_a_card_whose_numbers_cannot_be_combined_has_no_stride(kind: str) -> None:
    one = ActionCard.make(("x",), (kind,))
    assert one.strided(1) == one
    with pytest.raises(UserError, match=r"not known what x is|do not add up"):
        one.strided(2)


def test_what_is_not_known_stays_so() -> None:
    after = ActionCard.make(("x",), ("delta",)).strided(3)
    assert (after.bounds, after.stride, after.rate, after.source_rate) == ((None,), None, None, None)


def test_a_bound_that_becomes_infinite_is_refused() -> None:
    with pytest.raises(UserError, match=r"bounds\.0"):
        ActionCard.make(("x",), ("delta",), bounds=((0.0, 1e308),)).strided(100)


# --- figures and words ---------------------------------------------------------------------------------------------


def test_statistics_are_those_of_sorted_numbers() -> None:
    """0 to 100 in steps of 1: percentiles are the numbers themselves."""
    rows = np.stack([np.arange(101.0), -np.arange(101.0)], axis=1)
    found = ActionStatistics.of(rows)
    assert (found.frames, found.p01, found.p99) == (101, (1.0, -99.0), (99.0, -1.0))
    assert (found.min, found.max, found.mean) == ((0.0, -100.0), (100.0, 0.0), (50.0, -50.0))
    assert found.std == pytest.approx((math.sqrt((101**2 - 1) / 12),) * 2)


def test_limits_are_bounds_then_what_was_observed_then_infinite() -> None:
    low, high = card(bounds=((-0.08, 0.08), None)).limits()
    assert (low.tolist(), high.tolist()) == ([-0.08, -1.0], [0.08, 1.0])
    low, high = card(bounds=(), statistics=None).limits()
    assert (low.tolist(), high.tolist()) == ([-math.inf] * 2, [math.inf] * 2)


def test_a_card_in_one_line() -> None:
    line = card().strided(2).line()
    assert line == (
        "delta_x [m] delta, gripper [-1 open, 1 closed] hold; 5 Hz, every 2nd frame of 10 Hz; sawyer; "
        f"card {card().strided(2).hash}"
    )
    assert card().timing() == "10 Hz, every frame"
    bare = ActionCard.make([f"action[{n}]" for n in range(13)], ("unknown",) * 13, stride=11)
    assert "and 5 more; rate not known, every 11th frame; robot not known" in bare.line()
    assert not bare.is_named(12)
    assert bare.units == ("",) * 13
