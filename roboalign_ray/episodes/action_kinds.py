"""Kinds of action dimensions: the meaning of a number over time, and its treatment when frames are skipped.

| kind | meaning of one number | over the frames skipped |
|---|---|---|
| delta | increment of a position | summed |
| delta_angle | increment of an angle, radians | summed |
| delta_rotation | part of a rotation increment given as quaternion or matrix | refused: these cannot be added |
| absolute | target position | the last one counts |
| angle | target angle, without jumps by whole turns | the last one counts |
| velocity | rate per second | averaged: the mean rate over the longer step is the same motion |
| hold | persistent command, such as a gripper's opening | the last one counts |
| toggle | one-shot command, 0 for none | the last command counts |
| event | flag of an event, such as the end of the episode | the last raised flag counts |
| unknown | undeclared | refused |

A source determines the kinds (`ActionFindings`); episodes, their store and its action card store them. No code assumes
a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from roboalign_ray.foundation.failures import UserError

ActionKind = Literal[
    "delta",
    "delta_angle",
    "delta_rotation",
    "absolute",
    "angle",
    "velocity",
    "hold",
    "toggle",
    "event",
    "unknown",
]
ACTION_KINDS: tuple[ActionKind, ...] = get_args(ActionKind)
UNKNOWN: ActionKind = "unknown"
KINDS_KEY = "action_kinds"  # in the description of a data set's action, where this package wrote it
OPTION = "--action-kind"
EXAMPLE = f"{OPTION} x=delta,gripper=hold or {OPTION} 'delta*6,hold'"
_SUMMED = ("delta", "delta_angle")
_ONE_SHOT = ("toggle", "event")
_UNSTRIDABLE = (UNKNOWN, "delta_rotation")
# Commands of a group below this share of the largest one are noise around "none".
_ONE_SHOT_LEAST = 0.5
_SHOWN_NAMES = 8


@dataclass(frozen=True)
class ActionFindings:
    """Kinds of a source's action dimensions, with reasons.

    Attributes:
        names: A names, with the unit in brackets if there is one.
        kinds: A kinds.
        reasons: A short clauses: the evidence for each kind, or why it is unknown.
        notes: further remarks for the user who converts, one line each.
        unsummable: dimensions that are parts of quaternions according to the data, which cannot be added.
    """

    names: tuple[str, ...]
    kinds: tuple[ActionKind, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unsummable: tuple[int, ...] = ()

    def lines(self) -> list[str]:
        """One line per kind and reason, with its dimensions; then the notes."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, kind, reason in zip(self.names, self.kinds, self.reasons, strict=True):
            groups.setdefault((kind, reason), []).append(name)
        lines = [f"{listed(names)}: {kind} ({reason})" for (kind, reason), names in groups.items()]
        return [*lines, *self.notes]


def listed(names: Sequence[str]) -> str:
    """The names, separated by commas; of many, the first ones and their number."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"


def names_of(names: Sequence[str], dims: int) -> tuple[str, ...]:
    """The names if there is one per dimension, else action[0] to action[dims - 1]."""
    return tuple(names) if len(names) == dims else tuple(f"action[{d}]" for d in range(dims))


def example_for(names: Sequence[str]) -> str:
    """Usage of the option that declares these dimensions."""
    some = ",".join(f"{name}=KIND" for name in names[:3]) + (",..." if len(names) > 3 else "")
    return f"{OPTION} '{some}' or, in order, {OPTION} 'KIND*N,KIND' (KIND: {', '.join(ACTION_KINDS[:-1])})"


def check_stride(
    names: Sequence[str], kinds: Sequence[ActionKind], stride: int, *, where: str, remedy: str = ""
) -> None:
    """Refuse to skip frames if that would silently lose motion.

    Args:
        names: names of the dimensions.
        kinds: kinds of the dimensions.
        stride: frames from one kept frame to the next; 1 skips nothing and always passes.
        where: the data that is read, for the message.
        remedy: text before the option that declares kinds, in the remedy.

    Raises:
        UserError: a dimension's kind is unknown, or its numbers cannot be combined.
    """
    if stride == 1:
        return
    names = names_of(names, len(kinds))
    rotations = [name for name, kind in zip(names, kinds, strict=True) if kind == "delta_rotation"]
    if rotations:
        raise UserError(
            f"rotation increments given as {listed(rotations)} do not add up, so no frame can be skipped",
            where=where,
            remedy="keep every frame (stride 1), or store them as roll, pitch, yaw or axis-angle increments",
        )
    unknown = [name for name, kind in zip(names, kinds, strict=True) if kind == UNKNOWN]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        raise UserError(
            f"frames are to be skipped, and it is not known what {listed(unknown)} {verb}",
            where=where,
            remedy=f"{remedy or 'say so with'} {example_for(unknown)}",
        )


def accumulate_actions(
    actions: np.ndarray,
    kinds: Sequence[ActionKind],
    stride: int,
    *,
    names: Sequence[str] = (),
    where: str = "actions",
) -> np.ndarray:
    """Actions between every `stride`-th frame, by the kinds (see this module's table).

    The last group may be shorter than `stride`: a velocity is then the mean over its frames.

    Args:
        actions: float32 [T, A].
        kinds: A kinds; if omitted, all are unknown.
        stride: frames from one kept frame to the next.
        names, where: for the message.

    Returns:
        float32 [ceil(T / stride), A].

    Raises:
        UserError: as `check_stride`.
    """
    kinds = tuple(kinds) or (UNKNOWN,) * actions.shape[1]
    check_stride(names, kinds, stride, where=where)
    if stride == 1:
        return np.array(actions, dtype=np.float32)
    starts = np.arange(0, len(actions), stride)
    ends = np.minimum(starts + stride, len(actions))
    out = np.array(actions[ends - 1], dtype=np.float32)
    columns = {name: [d for d, kind in enumerate(kinds) if kind in of] for name, of in _GROUPS.items()}
    added = columns["summed"] + columns["averaged"]
    if added:
        totals = np.add.reduceat(actions[:, added].astype(np.float64), starts, axis=0)
        totals[:, len(columns["summed"]) :] /= (ends - starts)[:, None]
        out[:, added] = totals
    for dim in columns["one_shot"]:
        out[:, dim] = _last_given(actions[:, dim], starts, ends)
    return out


_GROUPS = {"summed": _SUMMED, "averaged": ("velocity",), "one_shot": _ONE_SHOT}


def _last_given(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Per group of frames, the last command that is not "none"; without a command, the last value."""
    size = np.abs(values)
    largest = np.repeat(np.maximum.reduceat(size, starts), ends - starts)
    given = np.where((size > 0) & (size >= _ONE_SHOT_LEAST * largest), np.arange(len(values)), -1)
    latest = np.maximum.reduceat(given, starts)
    return values[np.where(latest >= 0, latest, ends - 1)]
