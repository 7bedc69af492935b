"""Who acts: nobody, chance, the scripted expert, or a planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roboalign_ray.config.agent import AgentConfig
from roboalign_ray.episodes.sources.metaworld_simulator import random_generator
from roboalign_ray.episodes.sources.metaworld_variants import OPEN
from roboalign_ray.planning.closed_loop.dynamics import Dynamics, SimulatedState, SimulatorDynamics
from roboalign_ray.planning.closed_loop.scene import Scene
from roboalign_ray.planning.protocol import Planner, Problem

_KEPT, _SPREAD = (
    0.8,
    0.5,
)  # random actions: share of the last one that is kept, and standard deviation, half ranges


@dataclass(frozen=True)
class Plan:
    """One plan, beside what it leads to.

    Attributes:
        actions: float32 [H, 4].
        imagined: uint8 [H, V, height, width, 3], as the dynamics predict.
        predicted: its cost in the dynamics, without roughness.
        real: the cost of the same actions in the true simulator.
        evaluated, seconds: candidates, and wall time of the search.
    """

    actions: np.ndarray
    imagined: np.ndarray
    predicted: float
    real: float
    evaluated: int
    seconds: float


class Agent(Protocol):
    """Acts until the next look; several frames at once where it does not look between them."""

    def act(self, scene: Scene, left: int) -> Plan | None:
        """Make 1 to `left` decisions. Returns the plan that they were taken from, if there is one."""
        ...


class Idle:
    """Does nothing, with an open gripper."""

    def act(self, scene: Scene, left: int) -> None:
        """One decision."""
        scene.act(np.array([0.0, 0.0, 0.0, OPEN]))


class RandomSmooth:
    """Correlated random actions, the same for the same start state.

    Args:
        high: greatest action; the least one is its negative.
        task, start: seed.
    """

    def __init__(self, high: np.ndarray, task: str, start: int) -> None:
        self._high, self._rng = high, random_generator("random actions", task, start)
        self._last = self._draw()

    def act(self, scene: Scene, left: int) -> None:
        """One decision."""
        fresh = np.sqrt(1 - _KEPT**2) * self._draw()
        self._last = _KEPT * self._last + fresh
        scene.act(np.clip(self._last, -1, 1) * self._high)

    def _draw(self) -> np.ndarray:
        return _SPREAD * self._rng.standard_normal(len(self._high))


class Expert:
    """The scripted expert at its own rate, a command every simulator step."""

    def act(self, scene: Scene, left: int) -> None:
        """One interval."""
        policy = scene.simulator.policy()
        scene.drive(lambda observation, done: policy(observation))


class HeldExpert:
    """The expert at the rate of decisions: what its commands add up to, held over the interval. The ceiling."""

    def act(self, scene: Scene, left: int) -> None:
        """One decision."""
        scene.act(scene.expert_action())


class PlanningAgent:
    """Plans, executes the first decisions, plans again from what is left of the plan.

    Args:
        planner: see `Planner`.
        dynamics: where it tries candidates.
        truth: the same cost in the simulator, for the record alone.
        limits: least and greatest action.
        config: horizon and decisions between plans.
        seed: of the first plan; the next ones have the next numbers.
    """

    def __init__(
        self,
        planner: Planner,
        dynamics: Dynamics,
        truth: SimulatorDynamics,
        limits: tuple[np.ndarray, np.ndarray],
        config: AgentConfig,
        seed: int = 0,
    ) -> None:
        self._planner, self._dynamics, self._truth = planner, dynamics, truth
        self._limits, self._config, self._seed = limits, config, seed
        self._warm: np.ndarray | None = None

    def act(self, scene: Scene, left: int) -> Plan:
        """`replan` decisions; fewer where the task is complete sooner."""
        config, seed = self._config, self._seed
        state = self._dynamics.state(scene)
        problem = Problem(state, self._dynamics.cost, *self._limits, config.horizon)
        found = self._planner.plan(problem, seed=seed, warm=self._warm)
        rest = found.rest(config.replan)
        self._warm, self._seed = (rest if len(rest) else None), seed + 1
        here: SimulatedState = self._truth.state(scene)
        actions = found.actions
        plan = Plan(
            actions=actions,
            imagined=self._dynamics.predict(state, actions, seed).frames[0],
            predicted=float(self._dynamics.cost(state, actions[None], seed)[0]),
            real=float(self._truth.cost(here, actions[None], seed)[0]),
            evaluated=found.evaluated,
            seconds=found.seconds,
        )
        for action in actions[: min(config.replan, left)]:
            scene.act(action)
            if scene.success_at is not None:
                break
        return plan
