"""Admission control: limits concurrent requests, so that accepted ones are answered in time and others refused at once.

The limit follows measured times, as in congestion control. It rises slowly while accepted requests take at most
`slowdown` times as long as a request alone, and falls fast when they take longer. The time of a request alone is
measured per size class, whenever a request happens to be alone; under sustained load, a request is admitted alone from
time to time to measure it.

    late     limit × .8      a share of ln 1.005 / -ln .8 = 2.2 % late requests keeps the limit constant
    in time  limit × 1.005   only if the limit was reached

A few more requests may wait, so that a burst after a quiet time is not refused. Each refusal removes one waiting place
and refuses the request that waits in it: under sustained load there is no queue.

Pure: no clock, no thread, no Ray.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_LEAST = 2.0  # initial limit: one request is judged while another is decoded
_FALL, _RISE = 0.8, 1.005
_NEWEST = 0.2  # weight of a new measurement of the time of a request alone
_RENEWED_AFTER = 500  # accepted requests of a size class until its time alone is measured again
_PLACES_BACK = (
    0.125  # waiting places restored per ended request without a refusal; all of them after the last
)


@dataclass(eq=False)
class Ticket:
    """An accepted request.

    Attributes:
        size: its size class, a power of four in bytes.
        started: whether it has started; until then it waits.
        alone: whether it was the only request in the service all the time.
        at_limit: whether it was the last request that the limit allowed.
    """

    size: int
    started: bool = False
    alone: bool = False
    at_limit: bool = False


class Admission:
    """Decides which requests to accept.

    Args:
        slowdown: longest allowed time of an accepted request, as a multiple of its time alone.
        most: largest number of concurrent requests.
        burst: requests beyond the limit that may wait after a quiet time.

    Attributes:
        limit: present limit of concurrent requests.
        in_flight: requests that have started and not finished.
        waiting: accepted requests that have not started, in order.
    """

    def __init__(self, slowdown: float, most: int, burst: int) -> None:
        self._slowdown, self._most, self._burst = slowdown, most, float(burst)
        self._least = min(_LEAST, float(most))
        self.limit, self.in_flight = self._least, 0
        self.waiting: deque[Ticket] = deque()
        self._places = self._burst
        self._refused = False  # refusals since the last request finished
        self._alone: Ticket | None = None
        self._times: dict[int, float] = {}  # seconds alone, by class of sizes
        self._since: dict[int, int] = {}  # accepted since that was measured
        self._draining, self._measuring = False, False

    @property
    def full(self) -> bool:
        """Whether a request would be refused now."""
        return not self._may_start and (
            len(self.waiting) >= int(self._places) or self.in_flight + len(self.waiting) >= self._most
        )

    @property
    def _may_start(self) -> bool:
        if self._measuring or (self._draining and self.in_flight):
            return False
        return self.in_flight < int(self.limit)

    def refuse(self, size_bytes: int) -> Ticket | None:
        """Record that a request is refused because the service is full.

        Args:
            size_bytes: size of its body.

        Returns:
            a waiting request that must be refused as well, or None.
        """
        self._refused = True
        self._places = max(0.0, self._places - 1)
        size = _class_of(size_bytes)
        if size not in self._times or self._since.get(size, 0) >= _RENEWED_AFTER:
            # Under sustained load no request is ever alone, so the service is emptied from time to time.
            self._draining = not self._measuring
        return self.waiting.pop() if len(self.waiting) > int(self._places) else None

    def admit(self, size_bytes: int) -> Ticket | None:
        """Accept a request if possible.

        Args:
            size_bytes: size of its body.

        Returns:
            a ticket for `finish`. If it has not started, it waits until `finish` or `refuse` returns it. None if the
            request must be refused; then call `refuse`.
        """
        if self.full:
            return None
        ticket = Ticket(_class_of(size_bytes))
        if self._may_start:
            self._start(ticket)
        else:
            self.waiting.append(ticket)
        return ticket

    def finish(self, ticket: Ticket, seconds: float | None) -> list[Ticket]:
        """Record that an accepted request was answered or stopped waiting.

        Args:
            seconds: time from its start to its answer; None if it must not be used, as after a failure.

        Returns:
            waiting requests that start now.
        """
        if not ticket.started:
            if ticket in self.waiting:
                self.waiting.remove(ticket)
            return []
        self.in_flight -= 1
        if self._alone is ticket:
            self._alone, self._measuring = None, False
        if not self._refused:
            quiet = not (self.in_flight or self.waiting)
            self._places = self._burst if quiet else min(self._burst, self._places + _PLACES_BACK)
        self._refused = False
        if seconds is not None:
            self._learn(ticket, seconds)
        started = []
        while self.waiting and self._may_start:
            started.append(self.waiting.popleft())
            self._start(started[-1])
        return started

    def _start(self, ticket: Ticket) -> None:
        ticket.started, ticket.alone = True, self.in_flight == 0
        ticket.at_limit = self.in_flight + 1 >= int(self.limit)
        if self._alone is not None:
            self._alone.alone = False
        self._alone = ticket if ticket.alone else None
        self._measuring, self._draining = self._draining, False
        self._since[ticket.size] = self._since.get(ticket.size, 0) + 1
        self.in_flight += 1

    def _learn(self, ticket: Ticket, seconds: float) -> None:
        if ticket.alone:
            self._measured(ticket.size, seconds)
        alone = self._times.get(ticket.size)
        if alone is None:
            return
        if seconds > self._slowdown * alone:
            self.limit = max(self._least, self.limit * _FALL)
        elif ticket.at_limit:
            self.limit = min(float(self._most), self.limit * _RISE)

    def _measured(self, size: int, seconds: float) -> None:
        before = self._times.get(size, seconds)
        self._times[size] = before + _NEWEST * (seconds - before)
        self._since[size] = 0


def _class_of(size_bytes: int) -> int:
    return max(0, size_bytes.bit_length() - 1) // 2
