"""The penalty of motions that a robot cannot execute, per frame and per clip.

    P = 0.5 Huber(j; 0.5 a_max / dt) + 0.25 Huber(a; 0.5 a_max)     jerk and acceleration are smoothed
      + 2 relu(|v| - v_max)² + 1 relu(|a| - a_max)²                 limits of velocity and acceleration
      + 1 relu(distance outside the range of positions)²            ours

Each term is the mean over time and over the dimensions, weighted by w / mean(w). Form and numbers are those of a public
re-implementation of EVA (arXiv 2603.17808); they are defaults of `ExecutabilityRewardConfig`. `dt` in the Huber loss is
the profile's, so a motion has the same penalty whatever its frame rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from roboalign_ray.config.rewards import ExecutabilityRewardConfig
from roboalign_ray.inverse_dynamics.embodiment import Embodiment
from roboalign_ray.inverse_dynamics.kinematics import Kinematics

_TOLERANCE = 1e-5  # share of a limit: actions are stored as float32
_LARGEST = 1e12  # values are limited to this, so that squares of noise stay finite


@dataclass(frozen=True)
class Penalty:
    """Penalties of clips.

    Attributes:
        terms: name to float64 [...], weighted; their sum is the total.
        per_frame: float64 [..., T]; its mean over T is the total.
        within: bool [...], whether the whole clip keeps all limits.
        violations: float64 [...], share of steps and weighted dimensions outside a limit.
    """

    terms: Mapping[str, np.ndarray]
    per_frame: np.ndarray
    within: np.ndarray
    violations: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Float64 [...]: the penalty P."""
        return np.sum(list(self.terms.values()), axis=0)


def penalty_of(motion: Kinematics, profile: Embodiment, config: ExecutabilityRewardConfig) -> Penalty:
    """The penalty of motions [..., T, A] of the profile's dimensions."""
    v_max, a_max = np.asarray(profile.velocity), np.asarray(profile.acceleration)
    low, high = profile.position_range
    jerk, acceleration, velocity, position = (
        np.clip(values, -_LARGEST, _LARGEST)
        for values in (motion.jerk, motion.acceleration, motion.velocity, motion.position)
    )
    excess = {
        "velocity_limit": np.abs(velocity) - v_max,
        "acceleration_limit": np.abs(acceleration) - a_max,
        "position_limit": np.maximum(low - position, position - high),
    }
    values = {
        "jerk": huber(jerk, 0.5 * a_max / profile.dt),
        "acceleration": huber(acceleration, 0.5 * a_max),
        **{name: np.maximum(over, 0.0) ** 2 for name, over in excess.items()},
    }
    weight = profile.weight / profile.weight.mean()
    frames = {
        name: getattr(config, f"{name}_weight") * _per_frame(value, weight) for name, value in values.items()
    }
    span = np.where(np.isfinite(high - low), high - low, 1.0)
    shares = [
        excess["velocity_limit"] / v_max,
        excess["acceleration_limit"] / a_max,
        excess["position_limit"] / span,
        np.abs(jerk) / profile.jerk_limit - 1,
    ]
    outside = _outside(shares, profile.weight > 0)
    return Penalty(
        terms={name: value.mean(-1) for name, value in frames.items()},
        per_frame=np.sum(list(frames.values()), axis=0),
        within=np.asarray(~outside.any((-1, -2))),
        violations=outside.mean((-1, -2)),
    )


def huber(values: np.ndarray, delta: np.ndarray | float) -> np.ndarray:
    """x² / 2 up to delta, then delta (|x| - delta / 2)."""
    size = np.abs(values)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _per_frame(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean over dimensions [..., T]; its mean over T is the mean over the known values of each dimension."""
    known = np.isfinite(values)
    steps = values.shape[-2]
    counted = known.sum(-2, keepdims=True)
    share = np.where(known, values, 0.0) * steps / np.maximum(counted, 1)
    return (share * weight).mean(-1)


def _outside(shares: list[np.ndarray], weighted: np.ndarray) -> np.ndarray:
    """Bool [..., T, weighted dimensions]: where a limit is exceeded; unknown values exceed none.

    Args:
        shares: excess as shares of the limits.
    """
    return np.any([np.nan_to_num(over, nan=-1.0) > _TOLERANCE for over in shares], axis=0)[..., weighted]
