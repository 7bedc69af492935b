"""Fault plans: they are complete, are the same for the same seed, and keep their gaps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.chaos.plan import KINDS, SOAK_GAP_S, count_faults, draw_plan, draw_soak

COUNTS = st.dictionaries(st.sampled_from(sorted(KINDS)), st.integers(1, 6), min_size=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), COUNTS, st.integers(1, 32))
def test_a_plan_has_every_fault_once_about_one_an_update(seed, counts, batch):
    plan = draw_plan(seed, counts, batch)
    assert Counter(fault.point for fault in plan.planned) == counts
    assert all(fault.action == KINDS[fault.point].action for fault in plan.planned)
    calls = sorted(fault.call for fault in plan.planned)
    gaps = [after - before for before, after in zip([0, *calls], calls, strict=False)]
    assert all(batch / 2 <= gap <= 1.5 * batch for gap in gaps)
    assert draw_plan(seed, counts, batch).planned == plan.planned


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(1, 60))
def test_a_soak_injects_every_20_to_60_seconds_until_its_time_is_over(seed, minutes):
    plan = draw_soak(seed, ["rollout", "hang"], 60 * minutes)
    calls = sorted(fault.call for fault in plan.planned)
    gaps = [after - before for before, after in zip([0, *calls], calls, strict=False)]
    assert all(SOAK_GAP_S[0] <= gap <= SOAK_GAP_S[1] for gap in gaps)
    assert 60 * minutes - SOAK_GAP_S[1] <= calls[-1] <= 60 * minutes


def test_kills_come_three_times_as_often_as_other_faults_in_a_soak():
    drawn = Counter(fault.point for fault in draw_soak(1, KINDS, 400_000).planned)  # about ten thousand
    kills = [drawn[name] for name, kind in KINDS.items() if kind.often]
    others = [drawn[name] for name, kind in KINDS.items() if not kind.often]
    assert sum(kills) / len(kills) == pytest.approx(3 * sum(others) / len(others), rel=0.1)


def test_a_plan_of_which_all_was_visited_has_fired_exactly():
    plan = draw_plan(3, {"rollout": 2, "node": 1}, 4)
    fired = [kind for _ in range(30) for kind in KINDS if plan.visit(kind)]
    assert Counter(fired) == {"rollout": 2, "node": 1}
    assert plan.report().exact


def test_kills_come_as_often_as_asked_for_and_the_others_less_often():
    assert count_faults([], 6) == {
        **dict.fromkeys(("rollout", "scorer", "learner", "checkpoint"), 6),
        **dict.fromkeys(("hang", "weights", "tokens", "scores", "quota", "journal"), 2),
    }
    assert count_faults(["hang:4", "node"], 1, nodes=3) == {"hang": 4, "node": 1}
    assert "annotator" in count_faults([], 1, judged=True)


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ("roll", "--fault: unknown fault 'roll'; one of rollout, scorer, learner"),
        ("hang:0", "'hang:0' has no valid number of times; as in hang:2"),
        ("hang:x", "'hang:x' has no valid number of times"),
        ("hang:", "'hang:' has no valid number of times"),
        ("node", "'node' needs --nodes 2 or more"),
        ("distiller", "'distiller' needs a job with judge.relabel.teacher"),
    ],
)
def test_unsupported_faults_give_an_error(chosen, line):
    with pytest.raises(UserError) as told:
        count_faults([chosen], 5)
    assert line in told.value.line()


def test_a_soak_too_short_for_a_fault_gives_an_error():
    with pytest.raises(UserError, match="too short"):
        draw_soak(0, ["rollout"], 10)
