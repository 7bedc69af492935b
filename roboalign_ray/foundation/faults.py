"""Fault plans: "at the 3rd call of `rollout.segment`, kill"; each happens once, and what happened is on record.

    plan = FaultPlan([Fault("rollout.segment", 3, "kill"), Fault("scorer.score", 1, "corrupt")])
    fault = plan.visit("rollout.segment")        at the point, each time it is passed
    plan.report().exact                          at the end: all that was planned fired, and nothing else

The plan counts and decides; doing harm is left to whoever asked (`strike` does the usual four). Counters must outlive
what is killed: keep the plan in a process that is not a target and ask it from there, or carry `state_dict` across.
A fault is on record before it is struck, so that one that ends its own process is on record too.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from roboalign_ray.foundation.failures import UserError

Action = Literal["kill", "hang", "corrupt", "quota"]
ACTIONS: tuple[str, ...] = get_args(Action)
FOREVER_S = 1e9


@dataclass(frozen=True, order=True)
class Fault:
    """One fault.

    Attributes:
        point: name of the place in the code.
        call: 1 for the first time that place is passed, over all workers that ask the same plan.
        action: "kill" ends the process, "hang" stops answering, "corrupt" spoils a reply, "quota" fills the disk.
        seconds: how long a hang lasts.
    """

    point: str
    call: int
    action: Action
    seconds: float = FOREVER_S

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise UserError(f"unknown fault '{self.action}'", remedy=f"one of {', '.join(ACTIONS)}")
        if self.call < 1 or not self.point or not self.seconds > 0:
            raise UserError(
                f"no such call: {self.point}:{self.call}",
                where="fault plan",
                remedy="name a point, a call counted from 1, and more than 0 seconds",
            )


@dataclass(frozen=True)
class FaultReport:
    """What a plan came to.

    Attributes:
        planned, fired: in the order of points and calls.
        visits: how often each point was passed.
    """

    planned: tuple[Fault, ...]
    fired: tuple[Fault, ...]
    visits: dict[str, int]

    @property
    def missing(self) -> tuple[Fault, ...]:
        """Planned, but their calls never came."""
        return tuple(fault for fault in self.planned if fault not in self.fired)

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

    @classmethod
    def parse(cls, lines: Iterable[str]) -> FaultPlan:
        """From "point:call:action" or "point:call:action:seconds" each.

        Raises:
            UserError: a line of another form.
        """
        return cls([_parse(line) for line in lines])

    @classmethod
    def draw(
        cls, seed: int, count: int, points: Sequence[str], actions: Sequence[Action], last_call: int
    ) -> FaultPlan:
        """`count` faults at different places, drawn evenly from all calls 1…`last_call` of all points.

        Raises:
            UserError: there are not so many calls.
        """
        if count > len(points) * last_call:
            raise UserError(
                f"{count} faults do not fit into {last_call} calls of {len(points)} points",
                where="fault plan",
            )
        chosen = random.Random(seed)
        places = chosen.sample([(point, call) for point in points for call in range(1, last_call + 1)], count)
        return cls([Fault(point, call, chosen.choice(actions)) for point, call in places])

    def visit(self, point: str) -> Fault | None:
        """Count one passing of the point; the fault that is due there, which is then on record as fired."""
        self._visits[point] += 1
        fault = self._due.pop((point, self._visits[point]), None)
        if fault is not None:
            self._fired.append(fault)
        return fault

    @property
    def fired(self) -> tuple[Fault, ...]:
        """In the order in which they fired."""
        return tuple(self._fired)

    def report(self) -> FaultReport:
        """Planned against fired."""
        return FaultReport(self.planned, tuple(sorted(self._fired)), dict(self._visits))

    def state_dict(self) -> dict[str, Any]:
        """Plan and counters, JSON types."""
        return {
            "planned": [asdict(fault) for fault in self.planned],
            "fired": [asdict(fault) for fault in self._fired],
            "visits": dict(self._visits),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave: what fired does not fire again."""
        self.planned = tuple(Fault(**fault) for fault in state["planned"])
        self._fired = [Fault(**fault) for fault in state["fired"]]
        self._visits = Counter(state["visits"])
        fired = set(self._fired)
        self._due = {(fault.point, fault.call): fault for fault in self.planned if fault not in fired}


def _parse(line: str) -> Fault:
    parts = line.split(":")
    try:
        point, call, action = parts[:3]
        seconds = float(parts[3]) if len(parts) == 4 else FOREVER_S
        number = int(call)
    except ValueError:
        parts = []
    if len(parts) not in (3, 4):
        raise UserError(
            f"'{line}' is not a fault",
            where="fault plan",
            remedy="write point:call:action, as in learner.step:2:kill",
        )
    return Fault(point, number, action, seconds)  # type: ignore[arg-type]


def strike(
    fault: Fault,
    reply: bytes = b"",
    *,
    kill: Callable[[int, int], None] = os.kill,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Do what the fault says to the calling process; the reply, spoiled where that was asked for.

    Args:
        reply: bytes on their way out.

    Raises:
        OSError: ENOSPC, for "quota".
    """
    if fault.action == "kill":
        kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "hang":
        sleep(fault.seconds)
    elif fault.action == "quota":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fault.point)
    elif fault.action == "corrupt":
        return corrupted(reply, fault.call)
    return reply


def corrupted(data: bytes, seed: int = 0) -> bytes:
    """The same number of bytes with one bit of one byte turned over; the same one for the same seed."""
    if not data:
        return data
    chosen = random.Random(seed)
    spoiled = bytearray(data)
    spoiled[chosen.randrange(len(spoiled))] ^= 1 << chosen.randrange(8)
    return bytes(spoiled)
