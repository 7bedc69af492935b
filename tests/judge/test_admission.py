"""How many requests are accepted: simulated services with known times, and invariants over any order of events."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.judge.serving.admission import Admission


def simulated(
    admission: Admission, rate: float, service_s: float, servers: int, seconds: float, seed: int = 0
) -> tuple[list[float], int]:
    """An open loop of Poisson arrivals before so many servers: seconds of the accepted, and how many were refused."""
    rng = np.random.default_rng(seed)
    free = [0.0] * servers
    events: list[tuple[float, int, object]] = []
    number, now, refused, taken = 0, 0.0, 0, []
    while now < seconds:
        now += rng.exponential(1 / rate)
        while events and events[0][0] <= now:
            ended, _, (ticket, began) = heapq.heappop(events)
            admission.finish(ticket, ended - began)
            taken.append(ended - began)
        ticket = admission.admit(8000)
        if ticket is None:
            refused += 1
            admission.refuse(8000)
            continue
        start = max(now, heapq.heappop(free))
        ends = start + service_s * rng.uniform(0.9, 1.1)
        heapq.heappush(free, ends)
        number += 1
        heapq.heappush(events, (ends, number, (ticket, now)))
    for _, _, (ticket, _) in events:
        admission.finish(ticket, None)
    return taken, refused


@pytest.mark.parametrize(("servers", "least"), [(1, 0.85), (2, 0.8), (4, 0.8)])
def test_at_ten_times_the_load_accepted_ones_are_in_time_and_the_work_goes_on(
    servers: int, least: float
) -> None:
    service_s = 0.05
    capacity = servers / service_s
    admission = Admission(slowdown=2.0, most=256, burst=8)
    simulated(admission, 0.2 / service_s, service_s, servers, 20)  # alone, now and then
    taken, refused = simulated(admission, 10 * capacity, service_s, servers, 60)
    assert refused > 5 * len(taken)
    # Two are always accepted: before one server that is twice the time alone.
    assert np.quantile(taken, 0.97) <= 2.2 * service_s
    assert len(taken) / 60 >= least * capacity


def test_below_its_capacity_nothing_is_refused() -> None:
    admission = Admission(slowdown=1.7, most=256, burst=8)
    _, refused = simulated(admission, 6.0, 0.05, 1, 120)
    assert refused == 0


def test_a_few_at_once_are_accepted_after_a_quiet_time_and_not_under_load() -> None:
    admission = Admission(slowdown=1.7, most=256, burst=8)
    first = [admission.admit(100) for _ in range(12)]
    assert [ticket is not None for ticket in first] == [True] * 11 + [False]  # three and a burst of eight
    admission.refuse(100)
    tickets = [ticket for ticket in first if ticket is not None]
    while len(tickets) > 2:
        admission.finish(tickets.pop(), None)
        if len(tickets) >= 3:
            assert admission.admit(100) is None
            admission.refuse(100)


def test_the_time_alone_is_measured_anew_under_lasting_load() -> None:
    """A service that has become ten times slower: with its old time alone every request would count as late."""
    admission = Admission(slowdown=2.0, most=64, burst=0)
    simulated(admission, 4.0, 0.05, 1, 20)
    taken, _ = simulated(admission, 20.0, 0.5, 1, 3000)
    late = np.array(taken[len(taken) // 2 :])
    assert admission.limit >= 2
    assert len(late) / 1500 > 0.85 / 0.5
    faster, _ = simulated(admission, 200.0, 0.05, 1, 60)
    assert len(faster) / 60 > 0.85 / 0.05


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 10**8), st.floats(0, 100)), max_size=200),
    st.integers(1, 12),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=100)
def test_any_order_of_events_keeps_the_counts(events: list, most: int, burst: int) -> None:
    admission = Admission(slowdown=1.5, most=most, burst=burst)
    open_tickets = []
    for arrives, size, seconds in events:
        if arrives:
            full = admission.full
            ticket = admission.admit(size)
            assert (ticket is None) == full
            if ticket is None:
                admission.refuse(size)
            else:
                open_tickets.append(ticket)
        elif open_tickets:
            admission.finish(open_tickets.pop(int(seconds) % len(open_tickets)), seconds or None)
        assert admission.in_flight == len(open_tickets) <= most
        assert min(2, most) <= admission.limit <= most
    for ticket in open_tickets:
        admission.finish(ticket, None)
    assert admission.in_flight == 0
    assert not admission.full  # an idle service accepts
