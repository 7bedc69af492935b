"""The record of injected faults and of the job's reactions, from which the report is made."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(eq=False)
class Injection:
    """One injected fault.

    Attributes:
        kind: one of `chaos_plan.KINDS`.
        target: the worker or other target.
        at: time of injection, from `time.monotonic`.
        noticed: when the job first reported it; None until then.
        why: the job's report.
        groups: numbers of the training groups that the target was processing.
        replaced: number of replaced workers.
        moot: whether it can no longer be noticed: the job was done, or the corrupted data had been replaced.
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
        """Time from the injection until it was noticed."""
        return None if self.noticed is None else self.noticed - self.at

    @property
    def open(self) -> bool:
        """Whether it has not been noticed yet but still can be."""
        return self.noticed is None and not self.moot

    def notice(self, why: str) -> None:
        """Record that the job reported it; only the first report counts."""
        if self.noticed is None:
            self.noticed, self.why, self.moot = time.monotonic(), why, False

    def mark_moot(self) -> None:
        """Record that it can no longer be noticed."""
        self.moot = self.noticed is None


class Record(list[Injection]):
    """All injections, in order."""

    def add(self, kind: str, target: str) -> Injection:
        """Record an injection at the present time."""
        self.append(Injection(kind, target, time.monotonic()))
        return self[-1]

    def notice(self, kind: str, why: str) -> None:
        """Record that the job reported the injections of a kind."""
        for injection in self:
            if injection.kind == kind:
                injection.notice(why)

    def mark_moot(self, *kinds: str) -> None:
        """Record that open injections, of these kinds or of all, can no longer be noticed."""
        for injection in self:
            if not kinds or injection.kind in kinds:
                injection.mark_moot()
