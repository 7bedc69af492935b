"""Fault plans: "at the 3rd visit of `rollout`, kill"; each fault fires once, and fired faults are recorded.

    plan = FaultPlan([Fault("rollout", 3, "kill"), Fault("scores", 1, "corrupt")])
    fault = plan.visit("rollout")        at the point, each time it is passed
    plan.report().exact                  at the end: every planned fault fired, and no other fault

The plan counts and decides; the caller injects the fault. Keep the plan in a process that is not a target.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from roboalign_ray.foundation.failures import UserError

Action = Literal["kill", "hang", "corrupt", "quota"]


@dataclass(frozen=True, order=True)
class Fault:
    """One fault.

    Attributes:
        point: name of the place in the code.
        call: which visit of that place, counted from 1.
        action: "kill" ends a process, "hang" stops its answers, "corrupt" changes a reply, "quota" fills the disk.
    """

    point: str
    call: int
    action: Action


@dataclass(frozen=True)
class FaultReport:
    """Planned faults and fired faults.

    Attributes:
        planned, fired: sorted by point and call.
        visits: how often each point was passed.
    """

    planned: tuple[Fault, ...]
    fired: tuple[Fault, ...]
    visits: dict[str, int]

    @property
    def exact(self) -> bool:
        """Whether every planned fault fired once and no other did."""
        return self.planned == self.fired


class FaultPlan:
    """Counted one-shot faults.

    Args:
        faults: at most one per point and call.

    Raises:
        UserError: two faults at the same call of the same point.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.planned = tuple(sorted(faults))
        self._due = {(fault.point, fault.call): fault for fault in self.planned}
        if len(self._due) < len(self.planned):
            raise UserError("two faults at one call of one point", where="fault plan")
        self._visits: Counter[str] = Counter()
        self._fired: list[Fault] = []

    def visit(self, point: str) -> Fault | None:
        """Count one visit of the point. Return the fault that is due, which is recorded as fired, or None."""
        self._visits[point] += 1
        fault = self._due.pop((point, self._visits[point]), None)
        if fault is not None:
            self._fired.append(fault)
        return fault

    def report(self) -> FaultReport:
        """The planned faults and the fired faults."""
        return FaultReport(self.planned, tuple(sorted(self._fired)), dict(self._visits))


def corrupted(data: bytes, seed: int = 0) -> bytes:
    """A copy of the bytes with one bit flipped; the seed determines which bit."""
    if not data:
        return data
    chosen = random.Random(seed)
    changed = bytearray(data)
    changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
    return bytes(changed)
