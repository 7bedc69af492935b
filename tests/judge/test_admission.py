"""How many requests are accepted: simulated services with known times, and invariants over any order of events."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.judge.serving.admission import Admission, Ticket


def simulated(
    admission: Admission, rate: float, service_s: float, servers: int, seconds: float, seed: int = 0
) -> tuple[list[float], int]:
    """An open loop of Poisson arrivals before so many servers: seconds of the accepted from their arrival, those that
    waited included, and how many were refused."""
    rng = np.random.default_rng(seed)
    free = [0.0] * servers
    ends: list[tuple[float, int, Ticket]] = []
    came: dict[Ticket, float] = {}
    begun: dict[Ticket, float] = {}
    now, refused, taken = 0.0, 0, []

    def start(ticket: Ticket, at: float) -> None:
        begun[ticket] = at
        done = max(at, heapq.heappop(free)) + service_s * rng.uniform(0.9, 1.1)
        heapq.heappush(free, done)
        heapq.heappush(ends, (done, len(begun), ticket))

    while now < seconds:
        now += rng.exponential(1 / rate)
        while ends and ends[0][0] <= now:
            at, _, ticket = heapq.heappop(ends)
            taken.append(at - came[ticket])
            for other in admission.finish(ticket, at - begun[ticket]):
                start(other, at)
        ticket = admission.admit(8000)
        if ticket is None:
            refused += 1 + (admission.refuse(8000) is not None)
            continue
        came[ticket] = now
        if ticket.started:
            start(ticket, now)
    for _, _, ticket in ends:
        admission.finish(ticket, None)
    while admission.waiting:
        admission.finish(admission.waiting[0], None)
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


def test_a_few_at_once_wait_their_turn_in_order_after_a_quiet_time() -> None:
    admission = Admission(slowdown=1.7, most=256, burst=8)
    tickets = [admission.admit(100) for _ in range(11)]
    assert [ticket is not None for ticket in tickets] == [True] * 10 + [False]  # two start, eight wait
    assert [ticket.started for ticket in tickets if ticket] == [True] * 2 + [False] * 8
    started = [ticket for ticket in tickets if ticket and ticket.started]
    for number in range(8):
        assert admission.finish(started[number], None) == [tickets[2 + number]]
        started.append(tickets[2 + number])
    for ticket in started[8:]:
        assert admission.finish(ticket, None) == []
    assert admission.in_flight == 0


def test_each_refusal_turns_the_last_that_waits_away_and_its_place_comes_back_slowly() -> None:
    admission = Admission(slowdown=1.7, most=256, burst=4)
    admission.finish(admission.admit(100), 1.0)
    tickets = [admission.admit(100) for _ in range(6)]
    assert [admission.refuse(100) for _ in range(6)] == [*tickets[:1:-1], None, None]
    assert admission.full
    running = tickets[:2]
    for _ in range(1 + 8):  # the first end comes after refusals
        assert admission.full
        assert admission.finish(running.pop(0), None) == []
        running.append(admission.admit(100))
        assert running[-1].started
    assert not admission.full
    assert not admission.admit(100).started


def test_all_places_are_back_once_the_service_was_empty_without_a_refusal() -> None:
    admission = Admission(slowdown=1.7, most=256, burst=4)
    admission.finish(admission.admit(100), 1.0)
    tickets = [admission.admit(100) for _ in range(2)]
    for _ in range(6):
        admission.refuse(100)
    assert admission.full
    admission.finish(tickets[0], 1.0)
    admission.finish(tickets[1], 1.0)
    assert sum(admission.admit(100) is not None for _ in range(10)) == 2 + 4


def test_whoever_waits_no_longer_gives_the_place_to_another() -> None:
    admission = Admission(slowdown=1.7, most=256, burst=1)
    tickets = [admission.admit(100) for _ in range(3)]
    assert admission.full
    assert admission.finish(tickets[2], None) == []
    assert admission.in_flight == 2
    assert not admission.full


def test_at_the_beginning_of_a_flood_nobody_waits_long() -> None:
    """The first hundred accepted, those that waited at first included."""
    for seed in range(20):
        admission = Admission(slowdown=2.0, most=256, burst=8)
        simulated(admission, 4.0, 0.05, 1, 20, seed)
        taken, _ = simulated(admission, 200.0, 0.05, 1, 6, seed)
        assert np.quantile(taken[:100], 0.98) <= 2.2 * 0.05


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
                other = admission.refuse(size)
                if other is not None:
                    open_tickets.remove(other)
                    assert not other.started
            else:
                open_tickets.append(ticket)
        elif open_tickets:
            ticket = open_tickets.pop(int(seconds) % len(open_tickets))
            assert all(other.started for other in admission.finish(ticket, seconds or None))
        assert admission.in_flight == sum(ticket.started for ticket in open_tickets)
        assert list(admission.waiting) == [ticket for ticket in open_tickets if not ticket.started]
        assert admission.in_flight or not admission.waiting
        assert len(open_tickets) <= most
        assert min(2, most) <= admission.limit <= most
    while open_tickets:
        admission.finish(open_tickets.pop(), None)
    assert admission.in_flight == 0
    assert not admission.full  # an idle service accepts
