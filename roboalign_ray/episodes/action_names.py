"""The kind of an action dimension by its name, if the name is unambiguous.

Only conventions with a single meaning count: `delta_x`, `dx`, `rel_x`, `x [m/s]`, `joint_velocity`, `elbow.pos`. `x`,
`joint_0` or `gripper` do not determine a kind. Every conclusion from a name is checked against the data and reported to
the user who converts (`action_evidence`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from roboalign_ray.episodes.action_kinds import ActionKind

_GENERIC_GROUPS = ("motors", "axes", "names", "action", "actions", "joints", "dims")
_UNIT = re.compile(r"[\[(]\s*([^\])]*?)\s*[\])]\s*$")  # also the index of an unnamed number: x[3]
_RATE_UNIT = re.compile(r"(?:/\s*s(?:ec(?:ond)?)?|\bs\^?-1)$|^(?:mps|rps|hz)$")
_STEP_UNIT = re.compile(r"/\s*(?:frame|step|tick)s?$")
_ANGLE_UNIT = re.compile(r"^(?:rad|deg|degree|radian)s?\b|^°")

_AXIS = "x|y|z|roll|pitch|yaw|rx|ry|rz|rot|theta|qx|qy|qz|qw|pos|ori"
_INCREMENT = re.compile(
    rf"(?:delta|rel|relative|increment|incremental|displacement|d(?:{_AXIS})|delta(?:{_AXIS}))"
)
_RATE = re.compile(r"(?:vel|vels|velocity|velocities|speed|twist|omega|qvel|angvel|linvel|v(?:x|y|z|yaw))")
_TARGET = re.compile(r"(?:abs|absolute|pos|position|positions|qpos)")
_ROTATION = re.compile(r"(?:d|delta)?(?:quat|quats|quaternion|quaternions|q[xyzw]|rot6d|6d|rotmat)")
_ANGLE = re.compile(
    r"(?:d|delta)?(?:roll|pitch|yaw|rx|ry|rz|rot|rotation|theta|euler|rpy|angle|orientation|ori|axisangle)"
)
_KIND_WORDS = ("delta", "rel", "relative", "abs", "absolute", "pos", "position", "target", "action", "state")
_GRIPPER = re.compile(r"(?:gripper|grip|finger|fingers|claw|jaw)s?")
_ONE_SHOT = re.compile(r"toggle")
_FLAG = re.compile(r"(?:terminate|terminated|terminal|done|termination)")


def words_of(name: str) -> list[str]:
    """A name in lower-case words, without its unit: "leftDelta_x [m]" gives left, delta, x."""
    bare = _UNIT.sub("", name)
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", bare)
    words = [word for word in re.split(r"[^a-z0-9]+", split.lower()) if word]
    # "d_x" is one word in two parts.
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "d" and re.fullmatch(_AXIS, word):
            joined[-1] = f"d{word}"
        else:
            joined.append(word)
    return joined


def split_unit(name: str) -> tuple[str, str]:
    """A name without its unit, and the unit in brackets at its end; "" without one. `x[3]` has an index, not a unit."""
    found = _UNIT.search(name)
    if not found or found.group(1).isdecimal() or not found.group(1):
        return name, ""
    return name[: found.start()].rstrip() or name, found.group(1)


def unit_of(name: str) -> str:
    """The unit in brackets at a name's end, lower case; "" without one."""
    return split_unit(name)[1].lower()


def plain_name(name: str) -> str:
    """The quantity that a dimension moves, without its kind: delta_x and x are the same."""
    kept = [word for word in words_of(name) if word not in _KIND_WORDS]
    return " ".join(re.sub(rf"^d(?={_AXIS})|^delta(?=.)", "", word) for word in kept)


def _says(pattern: re.Pattern[str], words: Sequence[str]) -> bool:
    return any(pattern.fullmatch(word) for word in words)


def is_angle(name: str) -> bool:
    """Whether the dimension is an angle by its unit or its name, of any kind."""
    return bool(_ANGLE_UNIT.search(unit_of(name))) or (not unit_of(name) and _says(_ANGLE, words_of(name)))


def is_gripper(name: str) -> bool:
    """Whether the dimension moves a gripper."""
    return _says(_GRIPPER, words_of(name))


def is_quaternion(name: str) -> bool:
    """Whether the number is part of a quaternion or of another rotation whose parts cannot be added."""
    return _says(_ROTATION, words_of(name))


def kind_from_name(name: str) -> ActionKind | None:
    """The kind that a name declares; None if it declares none, or two that contradict each other."""
    words, unit = words_of(name), unit_of(name)
    if _says(_ONE_SHOT, words):
        return "toggle"
    if _says(_FLAG, words):
        return "event"
    increment = _says(_INCREMENT, words) or words[:2] == ["world", "vector"] or bool(_STEP_UNIT.search(unit))
    rate = _says(_RATE, words) or bool(_RATE_UNIT.search(unit))
    target = _says(re.compile(r"abs|absolute"), words) or (_says(_TARGET, words) and not (increment or rate))
    if increment + rate + target != 1:
        return None
    if rate:
        return "velocity"
    if increment:
        if is_quaternion(name):
            return "delta_rotation"
        return "delta_angle" if is_angle(name) else "delta"
    return as_target(name)


def as_target(name: str) -> ActionKind:
    """The kind of a target position: a gripper's command, an angle, or another position."""
    if is_gripper(name):
        return "hold"
    return "angle" if is_angle(name) and not is_quaternion(name) else "absolute"


def flat_names(names: Any, size: int) -> tuple[str, ...]:
    """Names of a LeRobot feature in the order of its numbers; () if they are missing or their number is wrong.

    LeRobot writes a list, a list in a list, {"motors": [...]}, several such groups in sequence, or a mapping
    from name to position. A group's name other than "motors" is kept: {"delta_ee": ["x"]} gives
    delta_ee.x.

    Args:
        names: the value in info.json.
        size: number of dimensions of the feature.
    """
    flat = _flatten(names, "")
    if flat and all(position is not None for _, position in flat):
        if sorted(position for _, position in flat) != list(range(size)):
            return ()
        flat = sorted(flat, key=lambda pair: pair[1])
    found = tuple(name for name, _ in flat)
    return found if len(found) == size else ()


def _flatten(names: Any, group: str) -> list[tuple[str, Any]]:
    """(name, position or None) of every leaf, in order."""
    if isinstance(names, Mapping):
        leaves: list[tuple[str, Any]] = []
        for key, value in names.items():
            if isinstance(value, int) and not isinstance(value, bool):
                leaves.append((group + str(key), value))
            elif isinstance(value, str):  # {"0": "x"}: from position to name
                leaves.append((group + value, int(key) if str(key).isdecimal() else None))
            else:
                plain = str(key).lower() in _GENERIC_GROUPS
                leaves += _flatten(value, group if plain else f"{group}{key}.")
        return leaves
    if isinstance(names, list):
        return [leaf for item in names for leaf in _flatten(item, group)]
    return [] if names is None else [(group + str(names), None)]
