"""Fits an embodiment profile to real episodes, for robots without a shipped one.

A limit is a percentile of what was recorded, over all episodes. It says what the robot did, not what it can do, so the
profile is marked as fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.action_kinds import accumulate_actions
from roboalign_ray.episodes.store import EpisodeStore
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.inverse_dynamics.embodiment import GRIPPER_WEIGHT, Embodiment
from roboalign_ray.inverse_dynamics.kinematics import Kinematics, check_kinds, kinematics, least_steps

_SMALLEST = 1e-9


def fit_embodiment(
    store: EpisodeStore, episodes: EpisodesConfig, *, name: str, percentile: float = 99.5
) -> Embodiment:
    """Limits of the train split's actions, as a job reads them with its stride.

    Args:
        store: the episodes; no video is read.
        episodes: stride and split.
        name: of the profile.
        percentile: of absolute velocities, accelerations and jerks; positions take it and its opposite.

    Raises:
        UserError: the rate or a kind of action is not known, no episode is long enough, or nothing ever moves.
    """
    card, where = fitted_action_card(store, episodes), str(store.path)
    if card.rate is None:
        raise UserError(
            "the rate of the actions is not known, or episodes differ in it",
            where=where,
            remedy="convert them again with --fps",
        )
    check_kinds(card.kinds)
    numbers = store.split("train", episodes.held_out_fraction)
    motions = [
        kinematics(steps, kinds, 1 / card.rate)
        for actions, names, kinds in store.actions(numbers)
        if len(steps := accumulate_actions(actions, kinds, episodes.frame_stride, names=names))
        >= least_steps(kinds)
    ]
    if not motions:
        raise UserError(
            f"no episode of the train split has {least_steps(card.kinds) + 1} frames", where=where
        )
    return _profile(card, motions, name, percentile, len(numbers))


def _profile(
    card: ActionCard, motions: Sequence[Kinematics], name: str, percentile: float, episodes: int
) -> Embodiment:
    velocity, acceleration, jerk = (
        _limits([getattr(motion, what) for motion in motions], percentile)
        for what in ("velocity", "acceleration", "jerk")
    )
    moves = velocity > _SMALLEST
    if not moves.any():
        raise UserError("no action ever changes", where=name)
    gripper = tuple(dim for dim, label in enumerate(card.names) if "gripper" in label.lower())
    weights = np.where(moves, 1.0, 0.0)
    weights[[dim for dim in gripper if moves[dim]]] = GRIPPER_WEIGHT
    source = f"[fitted] percentile {percentile:g} of {episodes} episodes at {card.rate:g} Hz"
    position = _ranges([motion.position for motion in motions], percentile)
    sources = {
        "dt": "rate of the episodes",
        "velocity": source,
        "acceleration": source,
        "jerk": source,
        "weights": "1, gripper 0.2, a dimension that never moves 0",
    }
    return Embodiment(
        name=name,
        robots=card.embodiments,
        dt=1 / card.rate if card.rate else 1.0,
        names=card.names,
        units=card.units,
        velocity=tuple(_positive(velocity, moves)),
        acceleration=tuple(_positive(acceleration, moves)),
        jerk=tuple(_positive(jerk, moves)),
        position=position,
        gripper=gripper,
        weights=tuple(weights.tolist()),
        sources=sources | ({} if position is None else {"position": source}),
        fitted=True,
    )


def _limits(parts: Sequence[np.ndarray], percentile: float) -> np.ndarray:
    """Percentile of absolute values per dimension [A]; the largest where it is 0, 0 where nothing is known."""
    values = np.abs(np.concatenate(parts))
    found = np.zeros(values.shape[1])
    for dim, column in enumerate(values.T):
        known = column[np.isfinite(column)]
        if len(known):
            found[dim] = np.percentile(known, percentile) or known.max()
    return found


def _positive(limits: np.ndarray, moves: np.ndarray) -> list[float]:
    """Limits of dimensions that move; 1 for the others, which have no weight."""
    return [_rounded(limit) for limit in np.where(moves, np.maximum(limits, _SMALLEST), 1.0)]


def _ranges(parts: Sequence[np.ndarray], percentile: float) -> tuple[tuple[float, float] | None, ...] | None:
    """Lowest and highest position per dimension; None where it is not known or never changes."""
    values = np.concatenate(parts)
    found: list[tuple[float, float] | None] = []
    for column in values.T:
        known = column[np.isfinite(column)]
        low, high = np.percentile(known, [100 - percentile, percentile]) if len(known) else (0.0, 0.0)
        found.append((_rounded(low), _rounded(high)) if high > low else None)
    return tuple(found) if any(found) else None


def _rounded(value: float) -> float:
    """Six digits: more would only say how actions are stored."""
    return float(f"{value:.6g}")
