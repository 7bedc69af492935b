"""Chooses the number of threads of a decode pass: all threads of the process, or one, by recent times.

If no other program uses the cores, all threads are fastest. If another program uses a core, every stage of a pass waits
for the preempted thread, and one thread can be faster. A process cannot query this, so passes are timed, and the other
number is tried now and then. The tokens do not depend on it.
"""

from __future__ import annotations

from collections import deque

TRIED = 12  # passes of a trial; their mean counts, which includes lost time slices
FIRST = 24  # passes before the first trial
SHORTEST, LONGEST = 192, 1024  # passes between trials; doubled by every trial that changes nothing
MARGIN = 0.05  # share by which the other number must be faster
SLOWER, FASTER = (
    1.4,
    0.87,
)  # a change of the pass time by this factor since the last trial starts the next trial


class ThreadChoice:
    """Decides from pass times only, without a clock.

    Args:
        most: number of threads of the process, at least 2.
    """

    def __init__(self, most: int) -> None:
        self.most, self.current = most, most
        self._recent: deque[float] = deque(maxlen=TRIED)
        self._tried: list[float] = []
        self._left, self._wait = FIRST, SHORTEST
        self._usual = 0.0
        self._trying = False

    def threads(self) -> int:
        """Number of threads for the next pass."""
        return self._other if self._trying else self.current

    def took(self, threads: int, seconds: float) -> None:
        """Record the time of a pass with this number of threads."""
        if self._trying:
            if threads == self._other:
                self._tried.append(seconds)
            # Stop a trial that already took as long as a whole trial on the present number would.
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
        """Whether pass times differ clearly from those after the last trial."""
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
