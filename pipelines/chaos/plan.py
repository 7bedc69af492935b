"""What can be done to a running job, and when: the kinds of faults and the plans made of them. Pure.

A plan counts: groups that came back scored, or, for a soak, seconds. Each of its faults is due at one count, once, and
is struck at the first moment after it that suits it: a kill waits for a worker at work, a full disk for a checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.faults import Action, Fault, FaultPlan

SOAK_GAP_S = (20, 60)
_OFTEN = 3  # kills of one role for each fault of another kind


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        action: what is done, in the words of fault plans.
        roles: whose workers it may hit; empty where it hits no worker.
        what: one line for people.
        often: whether it is planned as often as kills are asked for, or a third as often.
    """

    action: Action
    roles: tuple[str, ...]
    what: str
    often: bool = False


_JUDGE = ("annotator", "distiller")
KINDS: Mapping[str, Kind] = {
    "rollout": Kind("kill", ("rollout",), "rollout worker killed at work", True),
    "scorer": Kind("kill", ("scorer",), "scorer killed at work", True),
    "learner": Kind("kill", ("learner",), "learner killed at work", True),
    "checkpoint": Kind("kill", ("learner",), "learner killed in mid-checkpoint", True),
    "annotator": Kind("kill", ("annotator",), "teacher killed at work"),
    "distiller": Kind("kill", ("distiller",), "distiller killed at work"),
    "hang": Kind("hang", ("rollout", "scorer", "learner"), "worker stopped in its tracks"),
    "weights": Kind("corrupt", (), "bit of the new weights flipped on their way"),
    "tokens": Kind("corrupt", (), "token of a rollout spoiled on its way to the scorer"),
    "scores": Kind("corrupt", (), "seed in a scorer's reply spoiled on its way back"),
    "quota": Kind("quota", ("learner",), "disk quota reached in mid-checkpoint"),
    "journal": Kind("quota", (), "disk quota reached in the middle of a journal's line"),
    "node": Kind("kill", (), "node removed with all its workers, another added"),
}


def count_faults(
    chosen: Sequence[str], kills: int, *, nodes: int = 1, judged: bool = False
) -> dict[str, int]:
    """How often each kind is to be struck.

    Args:
        chosen: "kind" or "kind:times" each; empty chooses all that the job has.
        kills: of every role, and the default for kinds that kill one; the others come a third as often, once at least.
        nodes: of the cluster.
        judged: whether a teacher and a distiller are at work.

    Raises:
        UserError: an unknown kind, a number below 1, or a kind that this job does not have.
    """
    able = [name for name in KINDS if _misses(name, nodes, judged) == ""]
    counts = {}
    for text in chosen or able:
        name, colon, times = text.partition(":")
        if name not in KINDS:
            raise UserError(f"unknown fault '{name}'", where="--fault", remedy=f"one of {', '.join(KINDS)}")
        if missing := _misses(name, nodes, judged):
            raise UserError(f"'{name}' needs {missing}", where="--fault")
        if colon and not (times.isdecimal() and int(times)):
            raise UserError(f"'{text}' names no number of times", where="--fault", remedy=f"as in {name}:2")
        counts[name] = int(times) if colon else kills if KINDS[name].often else max(1, kills // _OFTEN)
    return counts


def draw_plan(seed: int, counts: Mapping[str, int], batch: int) -> FaultPlan:
    """All faults in a random order, about one for every update.

    Args:
        counts: times by kind.
        batch: groups of an update; the plan counts scored groups.
    """
    chosen = random.Random(seed)
    order = [name for name, times in counts.items() for _ in range(times)]
    chosen.shuffle(order)
    return _in_turn(order, (chosen.randint(-(-batch // 2), batch + batch // 2) for _ in order))


def draw_soak(seed: int, kinds: Iterable[str], seconds: float) -> FaultPlan:
    """A random fault every 20 to 60 seconds, kills of one role three times as likely as any other; counts seconds.

    Raises:
        UserError: no time for a single one.
    """
    chosen, names = random.Random(seed), tuple(kinds)
    likely = [_OFTEN if KINDS[name].often else 1 for name in names]
    order, gaps, at = [], [], 0
    while (at := at + (gap := chosen.randint(*SOAK_GAP_S))) <= seconds:
        order += chosen.choices(names, likely)
        gaps.append(gap)
    if not order:
        raise UserError(f"{seconds:g} s are too short for a soak", where="--minutes", remedy="give 1 or more")
    return _in_turn(order, gaps)


def _in_turn(order: Sequence[str], gaps: Iterable[int]) -> FaultPlan:
    at, faults = 0, []
    for name, gap in zip(order, gaps, strict=True):
        at += gap
        faults.append(Fault(name, at, KINDS[name].action))
    return FaultPlan(faults)


def _misses(name: str, nodes: int, judged: bool) -> str:
    """What a job would need for this kind; empty where it has it."""
    if name == "node" and nodes < 2:
        return "--nodes 2 or more"
    if name in _JUDGE and not judged:
        return "a job whose judge is relabelled"
    return ""
