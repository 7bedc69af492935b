"""The robot's behaviour from a start state: the scripted expert, and counterfactual variants.

A driver maps observations to simulator actions, four numbers in [-1, 1]: dx, dy, dz and the gripper (positive closes).
Every driver keeps the hand moving: after its plan it continues to random waypoints, because a world model learns
nothing from a still picture. All random numbers come from the given generator, so a replay is identical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from roboalign_ray.foundation.failures import UserError, nearest_key

OPEN, CLOSE = -1.0, 1.0
Driver = Callable[[np.ndarray, bool], np.ndarray]  # (observation, succeeded so far) -> action [4]


class Wanderer:
    """Moves smoothly from one random waypoint to the next; half of them are near the object, so that contacts happen.

    Args:
        low, high: workspace corners [3], metres.
        rng: source of waypoints.
        gripper: constant command, or None for a new one at every waypoint.
        whole: corners of the whole workspace, of which cameras see a part; None for the same corners.
    """

    near, speeds, steps = 0.5, (0.35, 0.8), (20, 45)  # share near the object; speed, and time for a waypoint

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        rng: np.random.Generator,
        gripper: float | None = None,
        whole: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self._low, self._high, self._rng, self._fixed = low, high, rng, gripper
        self._whole = whole or (low, high)
        self._velocity = np.zeros(3)
        self._left = 0
        self._target = np.zeros(3)
        self._speed, self._gripper = 1.0, OPEN if gripper is None else gripper

    def everywhere(self) -> Wanderer:
        """One with the same source of waypoints that also leaves the visible part of the workspace."""
        return _Stray(*self._whole, self._rng, self._fixed)

    def __call__(self, observation: np.ndarray, succeeded: bool = False) -> np.ndarray:
        hand, thing = observation[:3], observation[4:7]
        if self._left <= 0 or np.linalg.norm(self._target - hand) < 0.02:
            self._choose(thing)
        self._left -= 1
        wanted = self._target - hand
        wanted = self._speed * wanted / max(np.linalg.norm(wanted), 0.06)
        self._velocity += 0.3 * (wanted - self._velocity)  # a smooth turn towards the next waypoint
        return np.clip(np.append(self._velocity, self._gripper), -1, 1)

    def _choose(self, thing: np.ndarray) -> None:
        self._target = self._rng.uniform(self._low, self._high)
        near = self._rng.random() < self.near
        if near:
            self._target = np.clip(thing + self._rng.normal(0, 0.05, 3), self._low, self._high)
        self._speed = self._rng.uniform(*self.speeds)
        self._left = int(self._rng.integers(*self.steps))
        if self._fixed is None:
            self._gripper = CLOSE if self._rng.random() < 0.5 else OPEN


class _Stray(Wanderer):
    """Goes far, and seldom to the object."""

    near, speeds, steps = 0.2, (0.7, 1.0), (25, 60)


def _expert(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """The scripted expert; after success it pauses, then moves on."""
    state = {"rest": 8}

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        if succeeded:
            state["rest"] -= 1
        return policy(observation) if state["rest"] > 0 else wander(observation)

    return drive


def _noisy(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """The expert with smooth, correlated noise on its motion."""
    expert, noise, strength = _expert(policy, wander, rng, steps), np.zeros(3), rng.uniform(0.25, 0.6)

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        nonlocal noise
        noise = 0.9 * noise + np.sqrt(1 - 0.9**2) * strength * rng.standard_normal(3)
        # The policy's gains exceed the limit by far: clip first, or the noise would have no effect.
        return np.clip(expert(observation, succeeded), -1, 1) + np.append(noise, 0.0)

    return drive


def _wander(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """Random waypoints from the first step on."""
    return wander


def _early_stop(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """The expert stops part of the way and moves elsewhere."""
    left = int(steps * rng.uniform(0.15, 0.4))

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        nonlocal left
        left -= 1
        return policy(observation) if left > 0 else wander(observation)

    return drive


def _detour(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """Random waypoints for up to 60 % of the time, out of view too; the expert from wherever they lead."""
    expert, astray = _expert(policy, wander, rng, steps), wander.everywhere()
    left = int(steps * rng.uniform(0.0, 0.6))

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        nonlocal left
        left -= 1
        return astray(observation) if left > 0 else expert(observation, succeeded)

    return drive


def _reverse(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """The expert's motion up to some time, then the same motion backwards, then elsewhere."""
    turn, done = int(steps * rng.uniform(0.2, 0.45)), []

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        nonlocal turn
        turn -= 1
        if turn > 0:
            done.append(np.clip(policy(observation), -1, 1))
            return done[-1]
        return done.pop() * np.array([-1.0, -1.0, -1.0, 1.0]) if done else wander(observation)

    return drive


def _slow(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """The expert at a fraction of its speed: the task may remain incomplete."""
    expert, pace = _expert(policy, wander, rng, steps), rng.uniform(0.4, 0.7)

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        return np.clip(expert(observation, succeeded), -1, 1) * np.array([pace, pace, pace, 1.0])

    return drive


def _flipped_gripper(policy: Any, wander: Wanderer, rng: np.random.Generator, steps: int) -> Driver:
    """The expert's path with inverted gripper commands: grasps fail."""
    expert = _expert(policy, wander, rng, steps)

    def drive(observation: np.ndarray, succeeded: bool) -> np.ndarray:
        action = np.array(expert(observation, succeeded), dtype=np.float64)
        action[3] = OPEN if action[3] > 0 else CLOSE
        return action

    return drive


class KeepMoving:
    """A driver that ends its plan once the hand has stood still, because a stuck hand gives no training signal.

    Args:
        plan: the driver to follow until then.
        wander: the driver to follow from then on.
        patience: number of steps within which the hand must move by `distance` metres; a grasp takes fewer.
    """

    def __init__(self, plan: Driver, wander: Wanderer, patience: int = 20, distance: float = 0.012) -> None:
        self._plan, self._wander = plan, wander
        self._patience, self._distance = patience, distance
        self._past: list[np.ndarray] = []
        self._stuck = False

    def __call__(self, observation: np.ndarray, succeeded: bool) -> np.ndarray:
        self._past = [*self._past[-self._patience :], observation[:3].copy()]
        still = np.linalg.norm(self._past[-1] - self._past[0]) < self._distance
        self._stuck = self._stuck or (len(self._past) > self._patience and bool(still))
        return self._wander(observation) if self._stuck else self._plan(observation, succeeded)


VARIANTS: dict[str, Callable[[Any, Wanderer, np.random.Generator, int], Driver]] = {
    "expert": _expert,
    "noisy": _noisy,
    "wander": _wander,
    "early_stop": _early_stop,
    "detour": _detour,
    "reverse": _reverse,
    "slow": _slow,
    "flipped_gripper": _flipped_gripper,
}


def check_variant(name: str) -> None:
    """Raise UserError, naming the nearest variant, unless `name` is one."""
    if name not in VARIANTS:
        raise UserError(
            f"unknown variant '{name}'", where="variants", remedy=nearest_key(name, list(VARIANTS))
        )
