"""Combines names and data to findings about actions: every dimension's kind, and the reason, or that it is unknown.

A name, or a data set's published layout, declares a kind unless the data contradict it. Without a declaration, the data
decide if they can (see `action_evidence`); otherwise the kind is "unknown", and must be declared to skip frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from roboalign_ray.episodes.action_evidence import (
    ActionSample,
    Evidence,
    always_one,
    evidence,
    gripper_kind,
    is_constant,
    quaternion_dims,
    turns_in,
    two_valued_command,
)
from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionFindings, ActionKind
from roboalign_ray.episodes.action_names import (
    as_target,
    is_angle,
    is_gripper,
    is_quaternion,
    kind_from_name,
    plain_name,
    words_of,
)
from roboalign_ray.foundation.failures import printable

Decision = tuple[ActionKind, str]
_POSITIONS = ("absolute", "angle", "hold")
_INCREMENTS = ("delta", "delta_angle")
_FOLLOWS_STATE = "its values follow the state itself"
_BEHIND_A_POSE = re.compile(r"\[(?:6|13)\]$")  # the number after a pose of six numbers, with one arm or two
_LEANING = 0.4  # minimum correlation of a dimension that gets the kind of its neighbours


def resolve_actions(
    names: Sequence[str],
    samples: Sequence[ActionSample],
    *,
    published: Mapping[int, Decision] | None = None,
    state_names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ActionFindings:
    """Determine the kinds of a data set's actions.

    Args:
        names: A names, with units in brackets.
        samples: a few episodes; without any, only names decide.
        published: kind and reason per dimension, for a data set whose layout is known.
        state_names: names of the state's dimensions, if known.
        notes: further remarks, one line each.
    """
    names = [printable(name) for name in names]
    samples = [sample for sample in samples if sample.actions.shape[1] == len(names)]
    published = published or {}
    quaternions = _quaternions(names, samples)
    pairs = _state_dims(names, samples, state_names)
    found = [
        evidence(samples, dim, pairs.get(dim), angle=is_angle(name) and dim not in quaternions)
        for dim, name in enumerate(names)
    ]
    decisions = []
    for dim, name in enumerate(names):
        declared = published.get(dim) or _declared(name)
        if declared is not None and dim in quaternions and declared[0] in _INCREMENTS:
            declared = "delta_rotation", declared[1]
        if declared is not None:
            decisions.append(_checked(declared, name, dim, samples, found[dim]))
        elif is_gripper(name):
            decisions.append(_gripper(dim, samples, found[dim]))
        else:
            decisions.append(_observed(name, dim in quaternions, found[dim], dim in pairs))
    _doubt_alike(decisions, found)
    _join_neighbours(decisions, names, quaternions, samples, found)
    _find_angles(decisions, samples, quaternions)
    kinds, reasons = tuple(kind for kind, _ in decisions), tuple(reason for _, reason in decisions)
    return ActionFindings(tuple(names), kinds, reasons, tuple(notes), tuple(sorted(quaternions)))


def _quaternions(names: Sequence[str], samples: Sequence[ActionSample]) -> set[int]:
    """Dimensions that are parts of quaternions or rotation matrices, by name or by their length of 1."""
    found = {dim for dim, name in enumerate(names) if is_quaternion(name)}
    if any("rw" in words_of(name) for name in names):  # rx, ry, rz, rw
        parts = {"rx", "ry", "rz", "rw"}
        found |= {dim for dim, name in enumerate(names) if parts & set(words_of(name))}
    return found | (quaternion_dims(samples) if samples else set())


def _state_dims(
    names: Sequence[str], samples: Sequence[ActionSample], state_names: Sequence[str]
) -> dict[int, int]:
    """The corresponding dimension of the state: by name, else by position if the numbers are equal."""
    if not samples or samples[0].state is None:
        return {}
    size = samples[0].state.shape[1]
    if len(state_names) == size:
        places = {plain_name(name): dim for dim, name in enumerate(state_names)}
        by_name = {d: places[plain_name(n)] for d, n in enumerate(names) if plain_name(n) in places}
        if by_name:
            return by_name
    return {dim: dim for dim in range(size)} if size == len(names) else {}


def _declared(name: str) -> Decision | None:
    kind = kind_from_name(name)
    return None if kind is None else (kind, "its name says so")


def _checked(
    declared: Decision, name: str, dim: int, samples: Sequence[ActionSample], found: Evidence
) -> Decision:
    """The declared kind, unless the data contradict it."""
    kind, reason = declared
    says = f"{reason.removesuffix(' says so')} says {kind}, but"
    if kind in (*_INCREMENTS, "velocity") and found.follows == "state":
        return UNKNOWN, f"{says} {_FOLLOWS_STATE}"
    if kind in _POSITIONS and found.follows == "change":
        return UNKNOWN, f"{says} its values follow the state's change"
    if kind in _INCREMENTS and samples and _like_a_gripper(name, dim, samples):
        return UNKNOWN, f"{says} it holds the values of a gripper's command"
    return declared


def _doubt_alike(decisions: list[Decision], found: Sequence[Evidence]) -> None:
    """If the data show that some increments are positions, accept the others only if the data confirm them."""
    if not any(kind == UNKNOWN and reason.endswith(_FOLLOWS_STATE) for kind, reason in decisions):
        return
    for dim, (kind, reason) in enumerate(decisions):
        if kind in (*_INCREMENTS, "velocity") and found[dim].follows not in ("change", "scaled_change"):
            says = reason.removesuffix(" says so")
            decisions[dim] = UNKNOWN, f"{says} says {kind}, but others of the action follow the state itself"


def _like_a_gripper(name: str, dim: int, samples: Sequence[ActionSample]) -> bool:
    """Whether an increment's numbers are a command: two of -1, 0 and 1, or always 1 or -1 after a pose.

    The name of a single number (`delta_x`) is trusted; that of a whole vector, or of a gripper, may be imprecise.
    """
    if is_gripper(name) or name.endswith("]"):
        if two_valued_command(samples, dim):
            return True
        return bool(_BEHIND_A_POSE.search(name)) and always_one(samples, dim)
    return False


def _gripper(dim: int, samples: Sequence[ActionSample], found: Evidence) -> Decision:
    if found.follows == "state":
        return "hold", "a gripper that follows its state"
    if not samples:
        return UNKNOWN, "its name does not say whether the command stays in force"
    if found.follows == "change" and not is_constant(samples, dim):
        return UNKNOWN, "follows the state's change: increments (delta) or one-shot commands (toggle)"
    kind, reason = gripper_kind(samples, dim)
    return kind or UNKNOWN, reason


def _observed(name: str, quaternion: bool, found: Evidence, has_state: bool) -> Decision:
    """A kind from the data only."""
    if found.follows == "state":
        return ("absolute" if quaternion else as_target(name)), "follows the state itself"
    if found.follows == "change" and not quaternion:
        return ("delta_angle" if is_angle(name) else "delta"), "follows the state's change to the next frame"
    if found.follows == "scaled_change":
        return UNKNOWN, "follows the state's change in another unit: increments (delta) or a rate (velocity)"
    if quaternion:
        return UNKNOWN, "part of a quaternion: absolute, or an increment (delta_rotation)"
    return UNKNOWN, "its name says nothing, " + (
        "the data neither" if has_state else "and no state shows what it does"
    )


def _join_neighbours(
    decisions: list[Decision],
    names: Sequence[str],
    quaternions: set[int],
    samples: Sequence[ActionSample],
    found: Sequence[Evidence],
) -> None:
    """Give an undecided dimension the kind of the others, if most of them follow the same and it does not differ."""
    follows = [item.follows for item in found if item.follows in ("state", "change")]
    if not follows or len(set(follows)) > 1 or 2 * len(follows) < len(names):
        return
    for dim, (kind, _) in enumerate(decisions):
        if kind != UNKNOWN or found[dim].follows != "nothing" or dim in quaternions or is_gripper(names[dim]):
            continue
        if kind_from_name(names[dim]) is not None:
            continue  # the data contradict its name
        if follows[0] == "state":
            leans, taken = found[dim].alike_state, as_target(names[dim])
        else:
            leans, taken = found[dim].alike_change, "delta_angle" if is_angle(names[dim]) else "delta"
        if is_constant(samples, dim) or leans > _LEANING:
            decisions[dim] = (
                taken,
                f"as the {len(follows)} others, which follow the state's {_WHAT[follows[0]]}",
            )


_WHAT = {"state": "values", "change": "changes"}


def _find_angles(decisions: list[Decision], samples: Sequence[ActionSample], quaternions: set[int]) -> None:
    """Undeclared angles, recognised by their range and their jumps by a full turn."""
    for dim, (kind, reason) in enumerate(decisions):
        if kind not in ("absolute", UNKNOWN) or dim in quaternions or ", but " in reason:
            continue
        if any(turns_in(sample.actions[:, dim]) for sample in samples):
            decisions[dim] = "angle", "its range is a full turn, and it jumps from one end to the other"
