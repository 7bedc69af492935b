"""Evidence for the kinds of actions in the data: a few episodes' actions compared with their states.

An increment follows the change of the state to the next frame; a target position follows the state itself. Both are
recognised by agreement in size, not by correlation alone: a scaled increment and a rate look alike, so neither of these
is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError

Follows = Literal["change", "state", "scaled_change", "nothing"]
MOST_DIMS = 1024  # limit on an action's dimensions
_CLOSE = 0.3  # maximum root mean square error, relative to the followed quantity
_ALIKE = 0.7  # minimum correlation
_SLOPES = (0.5, 2.0)  # range of the action's slope over the followed quantity; outside it, the units differ
_LEAST_ROWS = 6
_EDGE = 0.6  # relative to half a turn: wrapped angles jump between values beyond this on both sides
_SMOOTH = 0.25  # relative to a turn: largest step of an undeclared angle
_LEAST_TURNED = 0.005  # relative to a turn: minimum range of an angle, without its jumps
_FLOAT32 = 4e-7  # rounding of a sum of four squares
_TURNS = (2 * np.pi, 360.0)


@dataclass(frozen=True)
class ActionSample:
    """Actions float32 [T, A] of one episode, and its state float32 [T, S] or None.

    Raises:
        EpisodeError: the action has more dimensions than any robot.
    """

    actions: np.ndarray
    state: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.actions.shape[1] > MOST_DIMS:
            raise EpisodeError(f"an action of {self.actions.shape[1]} numbers, at most {MOST_DIMS} are read")


@dataclass(frozen=True)
class Evidence:
    """The quantity that a dimension follows, and its correlations with the state's change and with the state."""

    follows: Follows = "nothing"
    alike_change: float = 0.0
    alike_state: float = 0.0


def evidence(
    samples: Sequence[ActionSample], dim: int, state_dim: int | None, *, angle: bool = False
) -> Evidence:
    """Determine what one dimension of the action follows in the data.

    Args:
        samples: a few episodes.
        dim: dimension of the action.
        state_dim: corresponding dimension of the state; None if there is none.
        angle: whether both are angles in radians: changes take the shorter way, differences are modulo a turn.
    """
    parts = [
        _pair(sample.actions[:, dim], sample.state[:, state_dim], angle)
        for sample in samples
        if sample.state is not None and state_dim is not None and len(sample.actions) > 1
    ]
    if not parts or sum(len(part[0]) for part in parts) < _LEAST_ROWS:
        return Evidence()
    action, state, change = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    of_change = _error(action, change, np.sqrt((change**2).mean()))
    of_state = _error(action, state, state.std())
    slope, alike_change = _fit(action, change)
    _, alike_state = _fit(action, state)
    near_change = of_change < _CLOSE or (alike_change > _ALIKE and _SLOPES[0] < slope < _SLOPES[1])
    near_state = of_state < _CLOSE or (alike_state > _ALIKE and _near_in_place(action, state))
    if near_change and near_state:  # decided only if one fits far better
        near_change, near_state = of_change < _CLOSE * of_state, of_state < _CLOSE * of_change
    found: Follows = "scaled_change" if alike_change > _ALIKE and not near_state else "nothing"
    if near_change != near_state:
        found = "change" if near_change else "state"
    return Evidence(found, alike_change, alike_state)


def _pair(action: np.ndarray, state: np.ndarray, angle: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Action, state after it, and the state's change over it; float64 [T - 1] each."""
    action, state = action.astype(np.float64), state.astype(np.float64)
    if angle and np.abs(state).max() < 1.01 * _TURNS[0]:  # larger values have another unit
        state = np.unwrap(state)
        whole = 2 * np.pi * np.round((action[:-1] - state[1:]) / (2 * np.pi))
        near = np.abs(whole) > 0
        return np.where(near, action[:-1] - whole, action[:-1]), state[1:], np.diff(state)
    return action[:-1], state[1:], np.diff(state)


def _error(action: np.ndarray, other: np.ndarray, size: float) -> float:
    """Root mean square difference relative to `size`; infinite if there is nothing to compare."""
    return float(np.sqrt(((action - other) ** 2).mean()) / size) if size > 1e-6 else float("inf")


def _fit(action: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Slope of the action over `other`, and their correlation; 0 if one of them is constant."""
    spread = other.std() * action.std()
    if spread < 1e-12:
        return 0.0, 0.0
    shared = ((action - action.mean()) * (other - other.mean())).mean()
    return float(shared / other.var()), float(shared / spread)


def _near_in_place(action: np.ndarray, state: np.ndarray) -> bool:
    """Whether the action has the state's values and range."""
    slope, _ = _fit(action, state)
    return _SLOPES[0] < slope < _SLOPES[1] and abs(action.mean() - state.mean()) < 2 * state.std()


def is_constant(samples: Sequence[ActionSample], dim: int) -> bool:
    """Whether a dimension never changes in the samples."""
    return float(np.ptp(_column(samples, dim))) < 1e-9


def gripper_kind(samples: Sequence[ActionSample], dim: int) -> tuple[Literal["hold", "toggle"] | None, str]:
    """Whether a gripper's numbers are a persistent command or one-shot commands, with the reason.

    None if they may be either, or increments: both signs, with 0 as the usual value.
    """
    values = _column(samples, dim)
    resting = float((np.abs(values) < 1e-6).mean())
    if np.ptp(values) < 1e-9:
        return "hold", "a gripper whose command never changes"
    if values.min() >= -1e-6:
        if set(np.unique(values).tolist()) in ({0.0, 1.0, 2.0}, {0.0, 2.0}, {1.0, 2.0}):
            return None, "a gripper's 0, 1 and 2: steps of its opening, or commands to close, stay and open"
        if len(np.unique(values)) == 2 and values.min() < 1e-6 and _all_alone(samples, dim):
            return None, "single frames of 1 among zeros: a command or its moment"
        return "hold", "a gripper's opening, never negative"
    if len(np.unique(values)) == 2 or resting < 0.05:
        return "hold", "a gripper's command without a neutral value"
    return (
        None,
        "a gripper's numbers of both signs and zero: one-shot commands (toggle), increments (delta) or hold",
    )


def _all_alone(samples: Sequence[ActionSample], dim: int) -> bool:
    """Whether no value except zero lasts for two frames."""
    for sample in samples:
        on = np.abs(sample.actions[:, dim]) > 1e-6
        if (on[1:] & on[:-1]).any():
            return False
    return True


def two_valued_command(samples: Sequence[ActionSample], dim: int) -> bool:
    """Whether a dimension holds only -1 and 1, or only 0 and 1, which increments do not."""
    values = set(np.unique(_column(samples, dim)).tolist())
    return len(values) == 2 and values in ({-1.0, 1.0}, {0.0, 1.0})


def always_one(samples: Sequence[ActionSample], dim: int) -> bool:
    """Whether a dimension is always 1, or always -1."""
    return set(np.unique(_column(samples, dim)).tolist()) in ({1.0}, {-1.0})


def quaternion_dims(samples: Sequence[ActionSample]) -> set[int]:
    """Dimensions of four neighbours that have length 1 in every row, and of which two or more change."""
    rows = np.concatenate([sample.actions for sample in samples]).astype(np.float64)
    found: set[int] = set()
    for first in range(rows.shape[1] - 3):
        part = rows[:, first : first + 4]
        if int((np.ptp(part, axis=0) > 1e-6).sum()) >= 2 and _of_length_one(part):
            found |= set(range(first, first + 4))
    return found


def _of_length_one(rows: np.ndarray) -> bool:
    """Whether rows [N, 4] have length 1 because they are quaternions.

    Small increments beside a gripper's 1 or -1 have a length near 1, but the gripper does not change with them.
    """
    if (np.abs(rows) == 1.0).all(axis=0).any():
        return False
    squares = rows**2
    off = np.abs(squares.sum(axis=1) - 1.0)
    given_up = 1.0 - squares.max(axis=1)
    return bool(off.max() < 2e-3 and off.mean() <= max(0.1 * given_up.mean(), _FLOAT32))


def _column(samples: Sequence[ActionSample], dim: int) -> np.ndarray:
    return np.concatenate([sample.actions[:, dim] for sample in samples]).astype(np.float64)


def turns_in(values: np.ndarray, *, degrees: bool | None = None) -> float:
    """The full turn, in the values' unit, for unwrapping an angle over time; 0 if the values are not an angle.

    Args:
        values: [T], values of one dimension.
        degrees: the unit of a known angle: every jump of more than half a turn is removed. None if unit or meaning is
            unknown: then the range must be that of wrapped angles, jumps must lead from one end of the range to the
            other, and all other steps must be small.
    """
    if len(values) < 2:
        return 0.0
    values = values.astype(np.float64)
    turns = _TURNS if degrees is None else (_TURNS[int(degrees)],)
    for turn in turns:
        jumps = np.abs(np.diff(values)) > turn / 2
        wraps = bool(jumps.any()) and np.ptp(values) < 1.01 * turn
        if wraps and (degrees is not None or _is_wrapped(values, turn, jumps)):
            return turn
    return 0.0


def _is_wrapped(values: np.ndarray, turn: float, jumps: np.ndarray) -> bool:
    middle = 0.0 if values.min() < -0.1 * turn else turn / 2
    place = (values - middle) / (turn / 2)
    before, after = place[:-1][jumps], place[1:][jumps]
    opposite = (np.sign(before) != np.sign(after)).all() and np.minimum(
        np.abs(before), np.abs(after)
    ).min() > _EDGE
    whole = np.unwrap(values, period=turn)
    smooth = np.abs(np.diff(whole)).max() < _SMOOTH * turn
    # A command with two values at the ends of the range would otherwise become constant.
    turns = np.ptp(whole) > _LEAST_TURNED * turn and jumps.mean() < 0.5
    return bool(np.abs(place).max() < 1.01 and opposite and smooth and turns)


def unwrapped(values: np.ndarray, turn: float) -> np.ndarray:
    """Angles [T] without jumps by whole turns, float64 [T]."""
    return np.unwrap(values.astype(np.float64), period=turn)
