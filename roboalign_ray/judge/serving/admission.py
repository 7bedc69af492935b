"""How many requests a service takes at a time, so that those it takes are answered in time and the others know at once.

The limit follows measured times, as congestion control does: it rises slowly while accepted requests take no longer
than `slowdown` times what one takes alone, and falls fast where they do. The time alone is measured per size of the
request, whenever one happens to be alone; under lasting load, one is let in alone now and then to measure it.

    late     limit × .8      a fraction of ln 1.005 / -ln .8 = 2.2 % late requests keeps it where it is
    in time  limit × 1.005   only where the limit was reached

Knows no clock, no thread and no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 2.0  # one is judged while another is decoded
_FIRST = 3.0
_FALL, _RISE = 0.8, 1.005
_NEWEST = 0.2  # weight of a new measurement of the time alone
_RENEWED_AFTER = 500  # accepted requests of a size after which its time alone is measured again


@dataclass(eq=False)
class Ticket:
    """An accepted request.

    Attributes:
        size: its class of sizes, a power of four of bytes.
        alone: no other request was in the service while it was.
        at_limit: it was the last that the limit allowed.
    """

    size: int
    alone: bool
    at_limit: bool


class Admission:
    """Accepts requests or not.

    Args:
        slowdown: longest time of an accepted request, as a multiple of its time alone.
        most: requests at a time, at most.
        burst: requests beyond the limit that are accepted after a quiet time.

    Attributes:
        limit: requests at a time, as of now.
        in_flight: requests accepted and not finished.
    """

    def __init__(self, slowdown: float, most: int, burst: int) -> None:
        self._slowdown, self._most, self._burst = slowdown, most, float(burst)
        self.limit, self.in_flight = min(_FIRST, float(most)), 0
        self._credit = self._burst
        self._refused = False  # since the last request finished
        self._alone: Ticket | None = None
        self._times: dict[int, float] = {}  # seconds alone, by class of sizes
        self._since: dict[int, int] = {}  # accepted since that was measured
        self._draining, self._measuring = False, False

    @property
    def full(self) -> bool:
        """Whether a request would be refused now."""
        if self._measuring or (self._draining and self.in_flight):
            return True
        return self.in_flight >= self._most or (self.in_flight >= int(self.limit) and self._credit < 1)

    def refuse(self, size_bytes: int) -> None:
        """A request is turned away because the service is full.

        Args:
            size_bytes: of its body.
        """
        self._refused = True  # no more bursts
        size = _class_of(size_bytes)
        if size not in self._times or self._since.get(size, 0) >= _RENEWED_AFTER:
            # Under lasting load no request is ever alone: let the service run empty once in a while.
            self._draining = not self._measuring

    def admit(self, size_bytes: int) -> Ticket | None:
        """Accept a request, or not.

        Args:
            size_bytes: of its body.

        Returns:
            what `finish` wants; None where it must be turned away: say so to `refuse`.
        """
        if self.full:
            return None
        if self.in_flight >= int(self.limit):
            self._credit -= 1
        size = _class_of(size_bytes)
        ticket = Ticket(size, self.in_flight == 0, self.in_flight + 1 >= int(self.limit))
        if self._alone is not None:
            self._alone.alone = False
        self._alone = ticket if ticket.alone else None
        self._measuring, self._draining = self._draining, False
        self._since[size] = self._since.get(size, 0) + 1
        self.in_flight += 1
        return ticket

    def finish(self, ticket: Ticket, seconds: float | None) -> None:
        """An accepted request has its answer.

        Args:
            seconds: from its acceptance to its answer; None where the time says nothing, as after a failure.
        """
        self.in_flight -= 1
        if self._alone is ticket:
            self._alone, self._measuring = None, False
        if not self._refused:
            self._credit = min(self._burst, self._credit + 1)
        self._refused = False
        if seconds is None:
            return
        if ticket.alone:
            self._measured(ticket.size, seconds)
        alone = self._times.get(ticket.size)
        if alone is None:
            return
        if seconds > self._slowdown * alone:
            self.limit = max(min(_LEAST, self._most), self.limit * _FALL)
        elif ticket.at_limit:
            self.limit = min(float(self._most), self.limit * _RISE)

    def _measured(self, size: int, seconds: float) -> None:
        before = self._times.get(size, seconds)
        self._times[size] = before + _NEWEST * (seconds - before)
        self._since[size] = 0


def _class_of(size_bytes: int) -> int:
    return max(0, size_bytes.bit_length() - 1) // 2
