"""Train and held-out splits by a hash of the group id: the same for every store, order and size of run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from roboalign_ray.foundation.failures import UserError

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
_SALT = "roboalign_ray/split/1"


def group_fraction(group_id: str, salt: str = _SALT) -> float:
    """A number in [0, 1) that is a function of the group id."""
    digest = hashlib.sha256(f"{salt}/{group_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(group_id: str, held_out_fraction: float) -> Split:
    """The split of a group. A larger fraction only adds groups to the held-out split.

    Raises:
        UserError: the fraction is not within (0, 1).
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise UserError(f"held-out fraction {held_out_fraction} is not between 0 and 1", where="split")
    return "held_out" if group_fraction(group_id) < held_out_fraction else "train"


def check_split(name: str) -> Split:
    """Check that a name is a split's, and return it.

    Raises:
        UserError: it is not a split's name.
    """
    for split in SPLITS:
        if name == split:
            return split
    raise UserError(f"unknown split '{name}'", where="split", remedy=f"use one of: {', '.join(SPLITS)}")


def positions_in(name: str, group_ids: Iterable[str], held_out_fraction: float) -> list[int]:
    """Positions of the groups of a split.

    Raises:
        UserError: `name` is not a split, or the fraction is not within (0, 1).
    """
    split = check_split(name)
    return [number for number, group in enumerate(group_ids) if split_of(group, held_out_fraction) == split]
