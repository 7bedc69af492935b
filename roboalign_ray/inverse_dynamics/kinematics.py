"""Velocity, acceleration and jerk of actions, in physical units.

    kind                          position q                              velocities of T actions
    delta, delta_angle, …         their sum from the clip's start          T: action / dt
    absolute, angle, hold         the action                               T - 1: its change / dt; the first is unknown
    velocity                      not known                                T: the action
    toggle, event                 none                                     none

Unknown values are NaN: acceleration has one more of them per dimension than velocity, jerk two more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionKind
from roboalign_ray.foundation.failures import UserError

INCREMENTS: tuple[ActionKind, ...] = ("delta", "delta_angle", "delta_rotation")
POSITIONS: tuple[ActionKind, ...] = ("absolute", "angle", "hold")
WITHOUT_MOTION: tuple[ActionKind, ...] = ("toggle", "event")


@dataclass(frozen=True)
class Kinematics:
    """Motion of clips, float64 [..., T, A], NaN where unknown; entry t belongs to the step from frame t to t + 1.

    Attributes:
        position: of dimensions whose position is known.
        velocity, acceleration, jerk: per second, per second² and per second³.
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray


def least_steps(kinds: Sequence[ActionKind]) -> int:
    """Number of actions from which every moving dimension has a jerk."""
    return 4 if any(kind in POSITIONS for kind in kinds) else 3


def kinematics(actions: np.ndarray, kinds: Sequence[ActionKind], dt: float) -> Kinematics:
    """The motion that actions stand for.

    Args:
        actions: [..., T, A] in the units of the action card.
        kinds: A kinds.
        dt: seconds that one action covers.

    Raises:
        UserError: a kind is unknown, or there are too few actions.
    """
    values = np.asarray(actions, np.float64)
    check_kinds(kinds)
    if values.shape[-2] < (least := least_steps(kinds)):
        raise UserError(
            f"a clip of {values.shape[-2] + 1} frames is too short, a jerk needs {least + 1}",
            where="executability",
            remedy="score longer rollouts (rollout.horizon)",
        )
    velocity, position = np.full_like(values, np.nan), np.full_like(values, np.nan)
    for dim, kind in enumerate(kinds):
        value = values[..., dim]
        if kind in INCREMENTS:
            velocity[..., dim] = value / dt
        elif kind == "velocity":
            velocity[..., dim] = value
        elif kind in POSITIONS:
            position[..., dim] = np.unwrap(value, axis=-1) if kind == "angle" else value
            velocity[..., 1:, dim] = np.diff(position[..., dim], axis=-1) / dt
    acceleration = _derivative(velocity, dt)
    return Kinematics(position, velocity, acceleration, _derivative(acceleration, dt))


def check_kinds(kinds: Sequence[ActionKind]) -> None:
    """Check that the motion of all dimensions is known.

    Raises:
        UserError: a kind is unknown.
    """
    if UNKNOWN in kinds:
        raise UserError(
            f"the kind of action {list(kinds).index(UNKNOWN)} is not known, so its motion is not",
            where="executability",
            remedy="declare it with: roboalign episodes declare",
        )


def _derivative(values: np.ndarray, dt: float) -> np.ndarray:
    """Change per second since the step before; NaN at the first one."""
    found = np.full_like(values, np.nan)
    found[..., 1:, :] = np.diff(values, axis=-2) / dt
    return found
