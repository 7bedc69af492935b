"""What was struck and what the job made of it: the record that a striker keeps and a report is made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(eq=False)
class Strike:
    """One fault that was struck.

    Attributes:
        kind: of `chaos_plan.KINDS`.
        target: which worker or what else.
        at: when, on the clock `time.monotonic`.
        noticed: when the job told of it first; None while it has not.
        why: what the job said.
        groups: of training, in the hands that were struck.
        replaced: workers that took the places of those lost.
        moot: whether there was nothing left to notice: the job was done, or what was spoiled had been replaced.
    """

    kind: str
    target: str
    at: float
    noticed: float | None = None
    why: str = ""
    groups: set[int] = field(default_factory=set)
    replaced: int = 0
    moot: bool = False

    @property
    def seconds(self) -> float | None:
        """Until it was noticed."""
        return None if self.noticed is None else self.noticed - self.at

    @property
    def open(self) -> bool:
        """Whether it is still to be noticed."""
        return self.noticed is None and not self.moot

    def notice(self, why: str) -> None:
        """The job says so; only the first time counts."""
        if self.noticed is None:
            self.noticed, self.why, self.moot = time.monotonic(), why, False

    def forgo(self) -> None:
        """Nobody will notice any more."""
        self.moot = self.noticed is None


class Record(list[Strike]):
    """All strikes, in order."""

    def add(self, kind: str, target: str) -> Strike:
        """One was struck this moment."""
        self.append(Strike(kind, target, time.monotonic()))
        return self[-1]

    def notice(self, kind: str, why: str) -> None:
        """The job tells of what was struck in this way."""
        for strike in self:
            if strike.kind == kind:
                strike.notice(why)

    def forgo(self, *kinds: str) -> None:
        """What is open, of these kinds or of all, will not be noticed any more."""
        for strike in self:
            if not kinds or strike.kind in kinds:
                strike.forgo()
