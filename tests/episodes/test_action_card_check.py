"""Two cards compared: what is refused, in which words, and what is only told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.episodes.action_card_check import check_cards
from roboalign_ray.foundation.failures import UserError


def card(**changes: Any) -> ActionCard:
    fields = {
        "labels": ("delta_x [m]", "delta_y [m]", "gripper [0 open, 1 closed]"),
        "kinds": ("delta", "delta", "hold"),
        "bounds": ((-0.05, 0.05), None, (0.0, 1.0)),
        "stride": 1,
        "rate": 10.0,
        "embodiments": ("sawyer",),
    }
    return ActionCard.make(**{**fields, **changes})


OTHER_NAME = ("delta_x [m]", "y [m]", "gripper [0 open, 1 closed]")
# change of the model's card: (field, what the line says of both, what it says to do)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "dimensions": (
        {"labels": ("x", "y"), "kinds": ("delta",) * 2, "bounds": ()},
        "actions have 3 dimensions in the store, 2 in the model",
        "use the model with actions as in the store, or pre-train on the store",
    ),
    "name": (
        {"labels": OTHER_NAME, "kinds": ("delta", "absolute", "hold")},
        "action 1 is 'delta_y [m]' (delta) in the store, 'y [m]' (absolute) in the model",
        "pre-train on the store",
    ),
    "kind": (
        {"kinds": ("velocity", "absolute", "hold")},
        "action 0 is 'delta_x [m]' (delta) in the store, 'delta_x [m]' (velocity) in the model "
        "(1 more differ in kind)",
        "corrected with: roboalign episodes declare",
    ),
    "unit": (
        {"labels": ("delta_x [mm]", "delta_y [m]", "gripper [0 open, 1 closed]")},
        "action 0 is 'delta_x [m]' (delta) in the store, 'delta_x [mm]' (delta) in the model",
        "pre-train on the store",
    ),
    "bounds": (
        {"bounds": (None, None, (-1.0, 1.0))},
        "(hold) from 0 to 1 in the store, 'gripper [0 open, 1 closed]' (hold) from -1 to 1 in the model",
        "pre-train on the store",
    ),
    "rate": (
        {"rate": 5.0, "stride": 2},
        "actions come at 10 Hz, every frame in the store, at 5 Hz, every 2nd frame of 10 Hz in the model",
        "set episodes.frame_stride to 2",
    ),
    "stride": (
        {"rate": None, "stride": 3},
        "one action covers 1 frames in the store, 3 in the model",
        "set episodes.frame_stride",
    ),
    "robot": (
        {"embodiments": ("franka", "widowx")},
        "the robot is sawyer in the store, franka, widowx in the model",
        "pre-train on the store",
    ),
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_differs_is_refused_with_both_values_and_a_remedy(field: str) -> None:
    change, what, remedy = REFUSED[field]
    check = check_cards(card(), card(**change))
    assert check.differences[0].field == field
    with pytest.raises(UserError) as caught:
        check.require("here")
    line = caught.value.line()
    assert line.startswith("here: ")
    assert what in line
    assert remedy in line
    assert "\n" not in line
    assert check_cards(card(**change), card()).differences[0].field == field


def test_equal_cards_have_nothing_to_tell() -> None:
    check = check_cards(card(), card())
    assert (check.differences, check.notes) == ((), ())
    check.require("nowhere")


# change of one side: what is told of it
TOLD: dict[str, tuple[dict[str, Any], str]] = {
    "names": (
        {"labels": ("delta_x [m]", "action[1]", "gripper [0 open, 1 closed]")},
        "the name of delta_y; the unit of delta_y",
    ),
    "kind": ({"kinds": ("delta", "delta", "unknown")}, "the kind of gripper"),
    "unit": ({"labels": ("delta_x", "delta_y", "gripper")}, "the unit of delta_x, delta_y, gripper"),
    "bounds": ({"bounds": (None, None, (0.0, 1.0))}, "the bounds of delta_x"),
    "rate": ({"rate": None}, "the rate"),
    "robot": ({"embodiments": ()}, "the robot"),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_one_side_does_not_know_is_told_and_not_refused(what: str) -> None:
    change, told = TOLD[what]
    check = check_cards(card(**change), card())
    assert check.differences == ()
    assert check.notes == (f"not known in the store, so not compared: {told}",)
    check = check_cards(card(), card(**change))
    assert check.differences == ()
    assert check.notes == (f"not known in the model, so not compared: {told}",)


def test_what_neither_side_knows_is_not_told() -> None:
    nothing = ActionCard.make(("action[0]",), ("unknown",))
    assert check_cards(nothing, nothing).notes == ()


SAME: dict[str, dict[str, Any]] = {
    "spelling": {"labels": ("Delta_X [M]", "delta_y  [m]", "gripper [0 Open, 1 closed]")},
    "bounds that passed through float32": {"bounds": ((-0.05000000074505806, 0.05), None, (0.0, 1.0))},
    "a rate within one in a hundred": {"rate": 9.99},
    "how a rate came about": {"stride": 2},
    "a model of more robots": {"embodiments": ("franka", "sawyer")},
}


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_matter_is_neither_refused_nor_told(what: str) -> None:
    check = check_cards(card(), card(**SAME[what]))
    assert (check.differences, check.notes) == ((), ())


def test_an_angle_that_never_wraps_may_be_called_a_position() -> None:
    one, other = (ActionCard.make(("joint",), (kind,)) for kind in ("angle", "absolute"))
    assert check_cards(one, other).differences == check_cards(other, one).differences == ()


def test_a_store_of_more_robots_than_the_model_names_the_stranger() -> None:
    check = check_cards(card(embodiments=("franka", "sawyer")), card())
    assert "the robot is franka in the store, sawyer in the model" in check.differences[0].what


@given(
    recorded=st.sampled_from([10.0, 15.0, 29.97, 30.0, 50.0]),
    trained=st.integers(1, 8),
    read=st.integers(1, 8),
)
def test_the_stride_that_is_advised_gives_the_models_rate(recorded: float, trained: int, read: int) -> None:
    base = ActionCard.make(("dx",), ("delta",), stride=1, rate=recorded)
    model, store = base.strided(trained), base.strided(read)
    check = check_cards(store, model, frame_stride=read)
    if read == trained:
        assert check.differences == ()
        return
    assert check.differences[0].remedy == f"set episodes.frame_stride to {trained}"


def test_a_rate_that_no_stride_gives_is_told_as_that() -> None:
    check = check_cards(card(rate=10.0), card(rate=4.0))
    assert check.differences[0].remedy.startswith("no episodes.frame_stride gives that rate")
    assert check_cards(card(rate=5.0), card(rate=10.0)).differences[0].remedy.startswith("no episodes")


def statistics(low: float, high: float) -> ActionStatistics:
    rows = np.linspace(low, high, 1001)
    return ActionStatistics.of(np.stack([np.zeros(1001), rows, np.linspace(0, 1, 1001)], axis=1))


@pytest.mark.parametrize(
    ("other", "told"),
    [((-1.0, 1.0), False), ((-0.8, 1.2), False), ((-0.4, 0.4), True), ((2.0, 3.0), True), ((0.0, 0.0), True)],
)
def test_other_statistics_are_told_and_never_refused(other: tuple[float, float], told: bool) -> None:
    """Overlap of the ranges: 1, 0.82, 0.4, 0 and 0."""
    check = check_cards(card(statistics=statistics(-1, 1)), card(statistics=statistics(*other)))
    assert check.differences == ()
    assert bool(check.notes) == told
    if told:
        assert check.notes[0].startswith(
            "values of delta_y lie elsewhere: delta_y from -0.98 to 0.98 in the store"
        )


def test_other_sides_can_be_named() -> None:
    check = check_cards(card(), card(rate=5.0), names=("the environment", "the policy"))
    assert "in the environment, at 5 Hz" in check.differences[0].what
