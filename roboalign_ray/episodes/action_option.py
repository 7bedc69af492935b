"""The option `--action-kind`: how a person declares what the dimensions of an action are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import replace

from roboalign_ray.episodes.action_kinds import (
    ACTION_KINDS,
    EXAMPLE,
    OPTION,
    ActionCard,
    ActionKind,
    listed,
)
from roboalign_ray.episodes.action_names import is_quaternion
from roboalign_ray.foundation.failures import UserError, nearest_key

_ITEM = re.compile(r"(?:[^,\[\(]|\[[^\]]*\]|\([^)]*\))+")  # commas inside brackets belong to a name


def declare(card: ActionCard, text: str) -> ActionCard:
    """The card with the kinds that a person declared.

    Args:
        card: what is known without.
        text: "NAME=KIND,NAME=KIND", or one kind per dimension in order, "KIND*N" standing for N of them. A name
            may leave out its unit, and its index (`world_vector` means all of its numbers); * and ? match any text.

    Raises:
        UserError: an unknown kind, a name that no dimension has, another number of kinds than of dimensions, or a sum
            of quaternions.
    """
    items = [item.strip() for item in _ITEM.findall(text) if item.strip()]
    if not items:
        raise UserError("declares nothing", where=OPTION, remedy=f"for example {EXAMPLE}")
    named = ["=" in item for item in items]
    if any(named) and not all(named):
        raise UserError(
            f"'{text}' mixes NAME=KIND with kinds in order", where=OPTION, remedy="use one of the two"
        )
    kinds = list(card.kinds)
    reasons = list(card.reasons)
    chosen = _by_name(card, items) if all(named) else _in_order(card, items)
    for dim, kind in chosen.items():
        part_of_rotation = is_quaternion(card.names[dim]) or dim in card.unsummable
        if kind in ("delta", "delta_angle") and part_of_rotation:
            raise UserError(
                f"'{card.names[dim]}' is part of a rotation whose numbers do not add up, so it is no {kind}",
                where=OPTION,
                remedy="absolute ones are 'absolute', increments 'delta_rotation'",
            )
        kinds[dim], reasons[dim] = kind, f"declared by {OPTION}"
    return replace(card, kinds=tuple(kinds), reasons=tuple(reasons))


def _in_order(card: ActionCard, items: Sequence[str]) -> dict[int, ActionKind]:
    kinds: list[ActionKind] = []
    for item in items:
        word, _, times = item.partition("*")
        if times and not (times.strip().isdecimal() and 0 < int(times) <= len(card.names)):
            raise UserError(
                f"'{item}' is no KIND*N with N from 1 to {len(card.names)}",
                where=OPTION,
                remedy=f"for example {EXAMPLE}",
            )
        kinds += [_kind(word.strip())] * int(times or 1)
    if len(kinds) != len(card.names):
        raise UserError(
            f"{len(kinds)} kinds for {len(card.names)} dimensions",
            where=OPTION,
            remedy=f"the dimensions are {listed(card.names)}",
        )
    return dict(enumerate(kinds))


def _by_name(card: ActionCard, items: Sequence[str]) -> dict[int, ActionKind]:
    chosen: dict[int, ActionKind] = {}
    for item in items:
        name, _, word = item.rpartition("=")
        kind = _kind(word.strip())
        dims = [d for d, full in enumerate(card.names) if _matches(name.strip().lower(), full.lower())]
        if not dims:
            raise UserError(
                f"no dimension of the action is named '{name.strip()}'",
                where=OPTION,
                remedy=f"the dimensions are {listed(card.names)}",
            )
        chosen.update(dict.fromkeys(dims, kind))
    return chosen


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
