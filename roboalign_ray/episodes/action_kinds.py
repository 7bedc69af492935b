"""What a dimension of an action means over time: its kind, and what becomes of it where frames are skipped.

| kind | meaning of one number | over the frames skipped |
|---|---|---|
| delta | increment of a position | summed |
| delta_angle | increment of an angle, radians | summed |
| delta_rotation | part of a rotation increment given as quaternion or matrix | refused: these do not add up |
| absolute | position to go to | the last one counts |
| angle | angle to go to, without jumps by whole turns | the last one counts |
| velocity | rate per second | averaged: the mean rate over the longer step is the same motion |
| hold | command that stays in force, such as a gripper's opening | the last one counts |
| toggle | one-shot command, 0 where none is given, such as a gripper's -1 open, 1 close | the last one given counts |
| event | flag of a moment, such as the end of the episode | the last one raised counts |
| unknown | nobody has said | refused |

A source finds out the kinds (`ActionFindings`); an episode, its store and its action card carry them. Nothing assumes
one.
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
OPTION = "--action-kind"
EXAMPLE = f"{OPTION} x=delta,gripper=hold or {OPTION} 'delta*6,hold'"
_SUMMED = ("delta", "delta_angle")
_ONE_SHOT = ("toggle", "event")
_UNSTRIDABLE = (UNKNOWN, "delta_rotation")
# Of the commands within a group, those below this part of the largest one are noise around "none".
_ONE_SHOT_LEAST = 0.5
_SHOWN_NAMES = 8


@dataclass(frozen=True)
class ActionFindings:
    """What is found out about a source's action dimensions, and how.

    Attributes:
        names: A names, with the unit in brackets where there is one.
        kinds: A kinds.
        reasons: A short clauses: how each kind came to be known, or why it is not.
        notes: further remarks for the person who converts, one line each.
        unsummable: dimensions that the data show to be parts of quaternions, which do not add up.
    """

    names: tuple[str, ...]
    kinds: tuple[ActionKind, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unsummable: tuple[int, ...] = ()

    def lines(self) -> list[str]:
        """One line per kind and reason, with the dimensions it holds for; then the notes."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, kind, reason in zip(self.names, self.kinds, self.reasons, strict=True):
            groups.setdefault((kind, reason), []).append(name)
        told = [f"{listed(names)}: {kind} ({reason})" for (kind, reason), names in groups.items()]
        return [*told, *self.notes]


def listed(names: Sequence[str]) -> str:
    """Names side by side; of many the first ones and their number."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"


def names_of(names: Sequence[str], dims: int) -> tuple[str, ...]:
    """The names where there is one per dimension, else action[0] to action[dims - 1]."""
    return tuple(names) if len(names) == dims else tuple(f"action[{d}]" for d in range(dims))


def example_for(names: Sequence[str]) -> str:
    """How the option looks that declares these dimensions."""
    some = ",".join(f"{name}=KIND" for name in names[:3]) + (",..." if len(names) > 3 else "")
    return f"{OPTION} '{some}' or, in order, {OPTION} 'KIND*N,KIND' (KIND: {', '.join(ACTION_KINDS[:-1])})"


def check_stride(
    names: Sequence[str], kinds: Sequence[ActionKind], stride: int, *, where: str, remedy: str = ""
) -> None:
    """Refuse to skip frames where that would lose motion without a word.

    Args:
        names: of the dimensions.
        kinds: of the dimensions.
        stride: frames from one kept frame to the next; 1 skips nothing and always passes.
        where: what is read, for the message.
        remedy: what comes before the option that declares kinds, in the advice.

    Raises:
        UserError: a dimension's kind is not known, or its numbers cannot be combined.
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

    The last group may be shorter than `stride`: a velocity is then the mean over the frames there are.

    Args:
        actions: float32 [T, A].
        kinds: A kinds; none given means that all are unknown.
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
    """Per group of frames the last command that is not "none"; where none was given, the last value."""
    size = np.abs(values)
    largest = np.repeat(np.maximum.reduceat(size, starts), ends - starts)
    given = np.where((size > 0) & (size >= _ONE_SHOT_LEAST * largest), np.arange(len(values)), -1)
    latest = np.maximum.reduceat(given, starts)
    return values[np.where(latest >= 0, latest, ends - 1)]
