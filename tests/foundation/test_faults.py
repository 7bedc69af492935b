"""Fault plans fire what was planned, once, wherever their counters are carried."""

from __future__ import annotations

import errno
import json
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.faults import ACTIONS, Fault, FaultPlan, corrupted, strike

POINTS = ["rollout.segment", "scorer.score", "learner.step"]


def test_a_fault_fires_at_its_call_and_never_again():
    plan = FaultPlan.parse(["rollout.segment:3:kill", "rollout.segment:5:hang:0.5"])
    seen = [plan.visit("rollout.segment") for _ in range(10)]
    assert [(call, fault.action) for call, fault in enumerate(seen, 1) if fault] == [(3, "kill"), (5, "hang")]
    assert plan.visit("scorer.score") is None
    assert plan.report().exact
    assert plan.report().visits == {"rollout.segment": 10, "scorer.score": 1}
    assert plan.fired[1].seconds == 0.5


def test_a_call_that_never_came_is_told():
    plan = FaultPlan([Fault("learner.step", 2, "kill"), Fault("learner.step", 9, "quota")])
    for _ in range(3):
        plan.visit("learner.step")
    assert not plan.report().exact
    assert plan.report().missing == (Fault("learner.step", 9, "quota"),)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000),
    st.integers(0, 12),
    st.lists(st.sampled_from(POINTS), max_size=60),
    st.integers(0, 60),
)
def test_a_plan_carried_over_a_restart_goes_on_where_it_was(seed, count, visits, cut):
    whole = FaultPlan.draw(seed, count, POINTS, ["kill", "hang"], 8)
    first = FaultPlan.draw(seed, count, POINTS, ["kill", "hang"], 8)
    expected = [whole.visit(point) for point in visits]
    seen = [first.visit(point) for point in visits[:cut]]
    second = FaultPlan()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen += [second.visit(point) for point in visits[cut:]]
    assert seen == expected
    assert second.report() == whole.report()
    due = {(fault.point, fault.call) for fault in whole.planned}
    assert len(due) == count
    passed = {(point, visits[: n + 1].count(point)) for n, point in enumerate(visits)}
    assert {(fault.point, fault.call) for fault in whole.fired} == due & passed


def test_strikes():
    told = []
    strike(Fault("p", 1, "kill"), kill=lambda pid, number: told.append(number))
    strike(Fault("p", 1, "hang", 7.0), sleep=told.append)
    assert told == [signal.SIGKILL, 7.0]
    with pytest.raises(OSError) as caught:
        strike(Fault("checkpoint.write", 1, "quota"))
    assert caught.value.errno == errno.ENOSPC
    reply = bytes(range(200))
    spoiled = strike(Fault("p", 4, "corrupt"), reply)
    assert sum((a ^ b).bit_count() for a, b in zip(reply, spoiled, strict=True)) == 1
    assert spoiled == corrupted(reply, 4)
    assert corrupted(b"") == b""


BAD = (
    "learner.step learner.step:x:kill learner.step:1:burn a:0:kill :1:kill a:1:hang:x a:1:hang:0 a:1:kill:1:2"
)


@pytest.mark.parametrize("line", BAD.split())
def test_bad_lines_are_told(line):
    with pytest.raises(UserError):
        FaultPlan.parse([line])


def test_two_faults_cannot_share_a_call():
    with pytest.raises(UserError, match="two faults"):
        FaultPlan([Fault("a", 1, "kill"), Fault("a", 1, "hang")])
    with pytest.raises(UserError, match="do not fit"):
        FaultPlan.draw(0, 10, ["a"], ["kill"], 9)
    assert set(ACTIONS) == {"kill", "hang", "corrupt", "quota"}
