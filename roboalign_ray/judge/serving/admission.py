"""How many requests a service takes at a time, so that those it takes are answered in time and the others know at once.

The limit follows measured times, as congestion control does: it rises slowly while accepted requests take no longer
than `slowdown` times what one takes alone, and falls fast where they do. The time alone is measured per size of the
request, whenever one happens to be alone; under lasting load, one is let in alone now and then to measure it.

    late     limit × .8      a fraction of ln 1.005 / -ln .8 = 2.2 % late requests keeps it where it is
    in time  limit × 1.005   only where the limit was reached

A few more may wait their turn, so that some at once after a quiet time are not refused. Each refusal takes one of those
places away, and turns away whoever waits in it: under lasting load there is no queue, and nobody waits in one.

Knows no clock, no thread and no Ray.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_LEAST = 2.0  # one is judged while another is decoded; the limit at first
_FALL, _RISE = 0.8, 1.005
_NEWEST = 0.2  # weight of a new measurement of the time alone
_RENEWED_AFTER = 500  # accepted requests of a size after which its time alone is measured again
_PLACES_BACK = (
    0.125  # places to wait that come back as a request ends after no refusal; all, where it was the last
)


@dataclass(eq=False)
class Ticket:
    """An accepted request.

    Attributes:
        size: its class of sizes, a power of four of bytes.
        started: its turn has come; until then it waits.
        alone: no other request was in the service while it was.
        at_limit: it was the last that the limit allowed.
    """

    size: int
    started: bool = False
    alone: bool = False
    at_limit: bool = False


class Admission:
    """Accepts requests or not.

    Args:
        slowdown: longest time of an accepted request, as a multiple of its time alone.
        most: requests at a time, at most.
        burst: requests beyond the limit that may wait after a quiet time.

    Attributes:
        limit: requests at a time, as of now.
        in_flight: requests started and not finished.
        waiting: accepted and not started, in their order.
    """

    def __init__(self, slowdown: float, most: int, burst: int) -> None:
        self._slowdown, self._most, self._burst = slowdown, most, float(burst)
        self._least = min(_LEAST, float(most))
        self.limit, self.in_flight = self._least, 0
        self.waiting: deque[Ticket] = deque()
        self._places = self._burst
        self._refused = False  # since the last request finished
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
        """A request is turned away because the service is full.

        Args:
            size_bytes: of its body.

        Returns:
            one that waited and must be turned away as well.
        """
        self._refused = True
        self._places = max(0.0, self._places - 1)
        size = _class_of(size_bytes)
        if size not in self._times or self._since.get(size, 0) >= _RENEWED_AFTER:
            # Under lasting load no request is ever alone: let the service run empty once in a while.
            self._draining = not self._measuring
        return self.waiting.pop() if len(self.waiting) > int(self._places) else None

    def admit(self, size_bytes: int) -> Ticket | None:
        """Accept a request, or not.

        Args:
            size_bytes: of its body.

        Returns:
            what `finish` wants; it may have to wait until that or `refuse` returns it. None where the request must be
            turned away: say so to `refuse`.
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
        """An accepted request has its answer, or waits no longer for its turn.

        Args:
            seconds: from its start to its answer; None where the time says nothing, as after a failure.

        Returns:
            those that waited and start now.
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
