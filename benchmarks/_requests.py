"""Sends one HTTP request again and again, at little cost: it shares the processors with the service that it measures.

One thread waits for all sockets at once; nothing is made anew per request but its connection.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

ANSWER_S = 60.0  # longest wait for an answer
MOST_OPEN = 900  # connections at a time
MOST_SENT = 30_000  # requests of one call
AFTER_REFUSAL_S = 0.02  # until a client asks again


@dataclass
class Outcome:
    """What requests came to.

    Attributes:
        seconds: of each answer of status 200, from the time at which its request was due.
        ended: when each of those came, on the clock of `time.perf_counter`.
        statuses: how many answers of each; 0 is no answer.
        took: seconds from the first request to the last answer.
    """

    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Answers of status 200 per second."""
        return self.statuses[200] / self.took

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.quantile(self.seconds, share)) * 1000 if self.seconds else float("nan")


class Requests:
    """Sends one request as often as wanted, each on a connection of its own.

    Args:
        address: of the service.
        request: as it goes over the wire; it asks for the connection to be closed, and fits into a socket's buffer.
    """

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.address, self.request = address, request

    def alone(self, count: int, pause_s: float = 0.01) -> Outcome:
        """One request after the other."""
        left = iter(range(count - 1))
        return self._sent([0.0], lambda status, now: None if next(left, None) is None else now + pause_s)

    def closed(self, clients: int, seconds: float) -> Outcome:
        """So many clients that each wait for their answer before they ask again, and a little after a refusal."""

        def again(status: int, now: float) -> float | None:
            if now >= seconds:
                return None
            return now if status == 200 else now + AFTER_REFUSAL_S

        return self._sent([0.0] * clients, again)

    def opened(self, rate: float, seconds: float) -> Outcome:
        """So many requests a second, whatever comes back."""
        return self._sent([number / rate for number in range(int(rate * seconds))], lambda status, now: None)

    def _sent(self, due: list[float], again: Callable[[int, float], float | None]) -> Outcome:
        """Send requests at their time.

        Args:
            due: seconds from now, ascending.
            again: a status and the time to when the next request is due; None for no further one.
        """
        outcome, start, sent = Outcome(), time.perf_counter(), 0
        links: dict[int, tuple[socket.socket, float]] = {}
        with select.epoll() as ready:

            def ended(status: int, began: float) -> None:
                now = time.perf_counter() - start
                outcome.statuses[status] += 1
                if status == 200:
                    outcome.seconds.append(now - began)
                    outcome.ended.append(start + now)
                following = again(status, now)
                if following is not None:
                    heapq.heappush(due, following)

            while due or links:
                now = time.perf_counter() - start
                while due and due[0] <= now:
                    began, sent = heapq.heappop(due), sent + 1
                    link = self._asked() if len(links) < MOST_OPEN and sent <= MOST_SENT else None
                    if link is None:
                        ended(0, began)
                        continue
                    links[link.fileno()] = link, began
                    ready.register(link, select.EPOLLIN)
                for number, _ in ready.poll(max(0.0, due[0] - now) if due else 1.0):
                    link, began = links.pop(number)
                    status = _status(link)
                    link.close()
                    ended(status, began)
                while links and now - (oldest := next(iter(links.values())))[1] > ANSWER_S:
                    links.pop(oldest[0].fileno())
                    oldest[0].close()
                    ended(0, oldest[1])
        outcome.took = time.perf_counter() - start
        return outcome

    def _asked(self) -> socket.socket | None:
        """A connection that the request is sent on; None where it is refused."""
        link = socket.socket()
        try:
            link.connect(self.address)
            link.setblocking(False)
            if link.send(self.request) < len(self.request):
                raise SystemExit(
                    f"a request of {len(self.request)} bytes does not fit into a socket's buffer"
                )
        except OSError:
            link.close()
            return None
        return link


def _status(link: socket.socket) -> int:
    """Of an answer that begins to arrive; 0 where the connection has ended without one."""
    try:
        head = link.recv(65536)
    except OSError:
        return 0
    return int(head[9:12]) if len(head) > 12 else 0
