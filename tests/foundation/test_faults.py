"""Fault plans fire what was planned, once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.faults import Fault, FaultPlan, corrupted

POINTS = ["rollout", "scorer", "learner"]
PLACES = st.tuples(st.sampled_from(POINTS), st.integers(1, 8))


@settings(deadline=None, max_examples=40)
@given(st.sets(PLACES, max_size=12), st.lists(st.sampled_from(POINTS), max_size=60))
def test_a_fault_fires_at_its_call_and_never_again(places, visits):
    plan = FaultPlan([Fault(point, call, "kill") for point, call in places])
    seen = [(point, plan.visit(point)) for point in visits]
    passed = [(point, visits[: n + 1].count(point)) for n, point in enumerate(visits)]
    for (point, call), (_, fault) in zip(passed, seen, strict=True):
        assert fault == (Fault(point, call, "kill") if (point, call) in places else None)
    report = plan.report()
    assert {(fault.point, fault.call) for fault in report.fired} == places & set(passed)
    assert report.exact == (places <= set(passed))
    assert report.visits == {point: visits.count(point) for point in set(visits)}


def test_one_bit_is_flipped_the_same_one_for_the_same_seed():
    reply = bytes(range(200))
    spoiled = corrupted(reply, 4)
    assert sum((a ^ b).bit_count() for a, b in zip(reply, spoiled, strict=True)) == 1
    assert spoiled == corrupted(reply, 4) != corrupted(reply, 5)
    assert corrupted(b"") == b""


def test_two_faults_cannot_share_a_call():
    with pytest.raises(UserError, match="two faults"):
        FaultPlan([Fault("a", 1, "kill"), Fault("a", 1, "hang")])
