"""How many threads a decode pass runs on: all that the process has, or one, whichever took less time lately.

Alone on its cores an engine is fastest on all of them. Where another program takes a core, every stage of a pass waits
for the thread that lost it, and one thread can be faster. Nobody tells a process which of the two holds, so passes are
timed and the other number is tried now and then. The tokens do not depend on it.
"""

from __future__ import annotations

from collections import deque

TRIED = 12  # passes of a trial; their mean counts, since a lost time slice costs what it costs
FIRST = 24  # passes before the first trial
SHORTEST, LONGEST = 192, 1024  # passes between trials; doubled by every trial that changes nothing
MARGIN = 0.05  # share by which the other number must be faster
SLOWER, FASTER = (
    1.4,
    0.87,
)  # passes whose time has changed by such a factor since the last trial start the next one


class ThreadChoice:
    """Decides from pass times alone. Holds no clock.

    Args:
        most: threads of the process, at least 2.
    """

    def __init__(self, most: int) -> None:
        self.most, self.current = most, most
        self._recent: deque[float] = deque(maxlen=TRIED)
        self._tried: list[float] = []
        self._left, self._wait = FIRST, SHORTEST
        self._usual = 0.0
        self._trying = False

    def threads(self) -> int:
        """For the next pass."""
        return self._other if self._trying else self.current

    def took(self, threads: int, seconds: float) -> None:
        """A pass on so many threads is over."""
        if self._trying:
            if threads == self._other:
                self._tried.append(seconds)
            # A trial that has taken as long as all of it would have on the present number is lost already.
            if len(self._tried) >= TRIED or sum(self._tried) >= TRIED * _mean(self._recent):
                self._decide()
            return
        self._recent.append(seconds)
        self._left -= 1
        full = len(self._recent) == TRIED
        self._trying = full and (self._left <= 0 or self._changed())

    @property
    def _other(self) -> int:
        return 1 if self.current == self.most else self.most

    def _changed(self) -> bool:
        """Whether passes take clearly another time than after the last trial."""
        return self._usual > 0 and not FASTER < _mean(self._recent) / self._usual < SLOWER

    def _decide(self) -> None:
        mine, others = _mean(self._recent), _mean(self._tried)
        if len(self._tried) >= TRIED and others < (1 - MARGIN) * mine:
            self.current, self._wait, self._usual = self._other, SHORTEST, others
        else:
            self._wait, self._usual = min(2 * self._wait, LONGEST), mine
        self._left, self._trying, self._tried = self._wait, False, []
        self._recent.clear()


def _mean(values: deque[float] | list[float]) -> float:
    return sum(values) / len(values)
