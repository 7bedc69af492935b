"""The options `--action-kind` and `--action-bounds`, with which users declare the dimensions of actions."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from roboalign_ray.episodes.action_card import Bounds
from roboalign_ray.episodes.action_kinds import (
    ACTION_KINDS,
    EXAMPLE,
    OPTION,
    ActionFindings,
    ActionKind,
    listed,
)
from roboalign_ray.episodes.action_names import is_quaternion
from roboalign_ray.foundation.failures import UserError, nearest_key

BOUNDS_OPTION = "--action-bounds"
BOUNDS_EXAMPLE = f"{BOUNDS_OPTION} 'x=-0.05:0.05,gripper=0:1'"
_ITEM = re.compile(r"(?:[^,\[\(]|\[[^\]]*\]|\([^)]*\))+")  # commas inside brackets belong to a name


def declare(findings: ActionFindings, text: str) -> ActionFindings:
    """The findings with the kinds that a user declared.

    Args:
        findings: findings without the declaration.
        text: "NAME=KIND,NAME=KIND", or one kind per dimension in order, where "KIND*N" stands for N of them. A name
            may omit its unit and its index (`world_vector` means all of its numbers); * and ? match any text.

    Raises:
        UserError: a kind is unknown, a name matches no dimension, the number of kinds is wrong, or quaternions would be
            summed.
    """
    items = [item.strip() for item in _ITEM.findall(text) if item.strip()]
    if not items:
        raise UserError("declares nothing", where=OPTION, remedy=f"for example {EXAMPLE}")
    named = ["=" in item for item in items]
    if any(named) and not all(named):
        raise UserError(
            f"'{text}' mixes NAME=KIND with kinds in order", where=OPTION, remedy="use one of the two"
        )
    kinds = list(findings.kinds)
    reasons = list(findings.reasons)
    chosen = _by_name(findings, items) if all(named) else _in_order(findings, items)
    for dim, kind in chosen.items():
        part_of_rotation = is_quaternion(findings.names[dim]) or dim in findings.unsummable
        if kind in ("delta", "delta_angle") and part_of_rotation:
            raise UserError(
                f"'{findings.names[dim]}' is part of a rotation whose numbers do not add up, so it is no {kind}",
                where=OPTION,
                remedy="absolute ones are 'absolute', increments 'delta_rotation'",
            )
        kinds[dim], reasons[dim] = kind, f"declared by {OPTION}"
    return replace(findings, kinds=tuple(kinds), reasons=tuple(reasons))


def _in_order(findings: ActionFindings, items: Sequence[str]) -> dict[int, ActionKind]:
    kinds: list[ActionKind] = []
    for item in items:
        word, _, times = item.partition("*")
        if times and not (times.strip().isdecimal() and 0 < int(times) <= len(findings.names)):
            raise UserError(
                f"'{item}' is no KIND*N with N from 1 to {len(findings.names)}",
                where=OPTION,
                remedy=f"for example {EXAMPLE}",
            )
        kinds += [_kind(word.strip())] * int(times or 1)
    if len(kinds) != len(findings.names):
        raise UserError(
            f"{len(kinds)} kinds for {len(findings.names)} dimensions",
            where=OPTION,
            remedy=f"the dimensions are {listed(findings.names)}",
        )
    return dict(enumerate(kinds))


def _by_name(findings: ActionFindings, items: Sequence[str]) -> dict[int, ActionKind]:
    chosen: dict[int, ActionKind] = {}
    for item in items:
        name, _, word = item.rpartition("=")
        kind = _kind(word.strip())
        chosen.update(dict.fromkeys(_named(findings.names, name.strip(), OPTION), kind))
    return chosen


def declare_bounds(
    names: Sequence[str], bounds: Sequence[Bounds | None], text: str
) -> tuple[Bounds | None, ...]:
    """The bounds, with those that a user declared.

    Args:
        names: A names, with units in brackets.
        bounds: A bounds without the declaration.
        text: "NAME=LOW:HIGH,NAME=LOW:HIGH"; names as in `declare`; `NAME=none` removes a bound.

    Raises:
        UserError: an item is not two finite numbers in order, or a name matches no dimension.
    """
    declared = list(bounds)
    items = [item.strip() for item in _ITEM.findall(text) if item.strip()]
    if not items:
        raise UserError("declares nothing", where=BOUNDS_OPTION, remedy=f"for example {BOUNDS_EXAMPLE}")
    for item in items:
        name, _, values = item.rpartition("=")
        pair = None if values.strip() == "none" else _pair(values, item)
        for dim in _named(names, name.strip(), BOUNDS_OPTION):
            declared[dim] = pair
    return tuple(declared)


def _pair(values: str, item: str) -> Bounds:
    try:
        low, high = map(float, values.split(":"))
        if math.isfinite(low) and math.isfinite(high) and low <= high:
            return low, high
    except ValueError:
        pass
    raise UserError(
        f"'{item}' is no NAME=LOW:HIGH with LOW <= HIGH",
        where=BOUNDS_OPTION,
        remedy=f"for example {BOUNDS_EXAMPLE}",
    )


def _named(names: Sequence[str], name: str, option: str) -> list[int]:
    """The dimensions that match a name of an option."""
    dims = [d for d, full in enumerate(names) if _matches(name.lower(), full.lower())]
    if not dims:
        raise UserError(
            f"no dimension of the action is named '{name}'",
            where=option,
            remedy=f"the dimensions are {listed(names)}",
        )
    return dims


def _matches(pattern: str, name: str) -> bool:
    bare = re.sub(r"\s*[\[(][^\])]*[\])]\s*$", "", name)
    return pattern in (name, bare) or any(fnmatch.fnmatchcase(text, pattern) for text in (name, bare))


def _kind(word: str) -> ActionKind:
    for kind in ACTION_KINDS[:-1]:
        if word == kind:
            return kind
    raise UserError(
        f"no kind of action is named '{word}'",
        where=OPTION,
        remedy=nearest_key(word, list(ACTION_KINDS[:-1])),
    )
