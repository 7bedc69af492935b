"""The kinds of faults, and plans that say when to inject them. Pure functions.

A plan counts scored groups or, for a soak, seconds. Each fault is due once, at one count. It is injected at the first
suitable moment after that: a kill waits for a busy worker, a full disk waits for a checkpoint.
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
        action: the action of the fault plan.
        roles: roles whose workers it may hit; empty if it hits no worker.
        what: description in one line.
        often: whether it is planned `kills` times; if not, a third as often.
    """

    action: Action
    roles: tuple[str, ...]
    what: str
    often: bool = False


_JUDGE = ("annotator", "distiller")
KINDS: Mapping[str, Kind] = {
    "rollout": Kind("kill", ("rollout",), "busy rollout worker killed", True),
    "scorer": Kind("kill", ("scorer",), "busy scorer killed", True),
    "learner": Kind("kill", ("learner",), "busy learner killed", True),
    "checkpoint": Kind("kill", ("learner",), "learner killed during a checkpoint", True),
    "annotator": Kind("kill", ("annotator",), "busy teacher killed"),
    "distiller": Kind("kill", ("distiller",), "busy distiller killed"),
    "hang": Kind("hang", ("rollout", "scorer", "learner"), "worker stopped (SIGSTOP)"),
    "weights": Kind("corrupt", (), "bit of new weights flipped in transit"),
    "tokens": Kind("corrupt", (), "number of a payload corrupted on the way to the scorer"),
    "scores": Kind("corrupt", (), "seed in a scorer's reply corrupted"),
    "quota": Kind("quota", ("learner",), "disk quota reached during a checkpoint"),
    "journal": Kind("quota", (), "disk quota reached within a journal line"),
    "node": Kind("kill", (), "node removed with all its workers, another added"),
}


def count_faults(
    chosen: Sequence[str], kills: int, *, nodes: int = 1, judged: bool = False
) -> dict[str, int]:
    """The number of injections of each kind.

    Args:
        chosen: each "kind" or "kind:times"; empty chooses all kinds that the job supports.
        kills: number for kinds that kill a rollout worker, scorer or learner; other kinds get a third, at least one.
        nodes: nodes of the cluster.
        judged: whether the job has a teacher and a distiller.

    Raises:
        UserError: a kind is unknown or not supported by this job, or a number is below 1.
    """
    able = [name for name in KINDS if _missing_support(name, nodes, judged) == ""]
    counts = {}
    for text in chosen or able:
        name, colon, times = text.partition(":")
        if name not in KINDS:
            raise UserError(f"unknown fault '{name}'", where="--fault", remedy=f"one of {', '.join(KINDS)}")
        if missing := _missing_support(name, nodes, judged):
            raise UserError(f"'{name}' needs {missing}", where="--fault")
        if colon and not (times.isdecimal() and int(times)):
            raise UserError(
                f"'{text}' has no valid number of times", where="--fault", remedy=f"as in {name}:2"
            )
        counts[name] = int(times) if colon else kills if KINDS[name].often else max(1, kills // _OFTEN)
    return counts


def draw_plan(seed: int, counts: Mapping[str, int], batch: int) -> FaultPlan:
    """All faults in a random order, about one for every update.

    Args:
        counts: number of injections by kind.
        batch: groups per update; the plan counts scored groups.
    """
    chosen = random.Random(seed)
    order = [name for name, times in counts.items() for _ in range(times)]
    chosen.shuffle(order)
    return _in_turn(order, (chosen.randint(-(-batch // 2), batch + batch // 2) for _ in order))


def draw_soak(seed: int, kinds: Iterable[str], seconds: float) -> FaultPlan:
    """A random fault every 20 to 60 seconds; kinds with `often` are three times as likely. The plan counts seconds.

    Raises:
        UserError: the time is too short for a fault.
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


def _missing_support(name: str, nodes: int, judged: bool) -> str:
    """What the job lacks for this kind; empty if it supports the kind."""
    if name == "node" and nodes < 2:
        return "--nodes 2 or more"
    if name in _JUDGE and not judged:
        return "a job with judge.relabel.teacher"
    return ""
