"""Simulated episodes: Meta-World's Sawyer arm, rendered, with labels read from the simulator.

Every variant of a start state begins in exactly that state, so episodes of one start differ only by the robot's
actions. Episodes are the same bit for bit whenever they are simulated again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from roboalign_ray.config.episodes import SimulationConfig
from roboalign_ray.episodes.action_kinds import ActionKind
from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.metaworld_simulator import (
    ACTION_SCALE,
    MetaworldSimulator,
    random_generator,
)
from roboalign_ray.episodes.sources.metaworld_tasks import DEFAULT_TASKS, check_task, sentence
from roboalign_ray.episodes.sources.metaworld_variants import VARIANTS, KeepMoving, check_variant
from roboalign_ray.episodes.sources.opengl import require_simulator

ACTION_KINDS: tuple[ActionKind, ...] = ("delta", "delta", "delta", "hold")
ACTION_NAMES = ("delta_x [m]", "delta_y [m]", "delta_z [m]", "gripper [-1 open, 1 closed]")


class MetaworldSource:
    """Episodes of every task, start and variant, start by start, with all tasks of a start together.

    Args:
        config: what to simulate.

    Raises:
        UserError: a task or variant is unknown, or Meta-World or OpenGL is missing.
    """

    name = "metaworld"

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self.tasks = config.tasks or DEFAULT_TASKS
        for task in self.tasks:
            check_task(task)
        for variant in config.variants:
            check_variant(variant)
        require_simulator()
        self._simulators: dict[str, MetaworldSimulator] = {}

    @property
    def action_bounds(self) -> tuple[tuple[float, float], ...]:
        """Minimum and maximum per action dimension: a simulator step is clipped to [-1, 1], then scaled to metres."""
        reach = self.config.steps_per_frame * ACTION_SCALE
        return (*(((-reach, reach),) * 3), (-1.0, 1.0))

    def groups(self) -> list[tuple[str, int]]:
        """(task, start index) of every start state, in the order of the episodes."""
        return [(task, index) for index in range(self.config.starts_per_task) for task in self.tasks]

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """All episodes, one process."""
        for task, index in self.groups():
            yield from self.group(task, index)

    def group(self, task: str, index: int) -> list[Episode | Quarantined]:
        """Every variant of one start state. An unstable simulation gives `Quarantined`."""
        if task not in self._simulators:
            self._simulators[task] = MetaworldSimulator(task, self.config)
        simulator = self._simulators[task]
        return [self._episode(simulator, index, variant) for variant in self.config.variants]

    def _episode(self, simulator: MetaworldSimulator, index: int, variant: str) -> Episode | Quarantined:
        config, task = self.config, simulator.task
        group_id = f"{self.name}/{task}/{index}"
        rng = random_generator("variant", config.seed, task, index, variant)
        steps = config.frames * config.steps_per_frame
        wander = simulator.wanderer(rng)
        driver = KeepMoving(VARIANTS[variant](simulator.policy(), wander, rng, steps), wander)
        observation = simulator.reset(index)
        frames: dict[str, list[np.ndarray]] = {view: [] for view in config.views}
        actions, states, labels = [], [], []
        successes = [False]
        for _ in range(config.frames):
            for view, seen in frames.items():
                seen.append(simulator.frame(view))
            states.append(simulator.proprioception())
            labels.append(simulator.labels.read())
            observation, action, flags = simulator.interval(observation, driver, any(successes))
            actions.append(action)
            successes.append(bool(flags[-1]))
        if simulator.env._did_see_sim_exception:
            return Quarantined(f"{group_id}/{variant}", "the simulation became unstable")
        per_frame = np.array(successes[: config.frames])
        return Episode(
            episode_id=f"{group_id}/{variant}",
            group_id=group_id,
            frames={view: np.stack(seen) for view, seen in frames.items()},
            actions=np.stack(actions),
            instruction=sentence(task, index),
            fps=1.0 / (simulator.env.dt * config.steps_per_frame),
            embodiment="sawyer",
            action_names=ACTION_NAMES,
            action_kinds=ACTION_KINDS,
            state=np.stack(states),
            outcome=Outcome(
                success=bool(per_frame.any()),
                success_per_frame=per_frame,
                privileged={name: np.stack([label[name] for label in labels]) for name in labels[0]},
            ),
            provenance=self._provenance(task, index, variant),
        )

    def _provenance(self, task: str, index: int, variant: str) -> dict[str, Any]:
        import metaworld
        import mujoco

        config = self.config
        return {
            "source": self.name,
            "task": f"{task}-v3",
            "start_index": index,
            "variant": variant,
            "seed": config.seed,
            "steps_per_frame": config.steps_per_frame,
            "camera": {
                "lookat": list(config.camera_lookat),
                "distance": config.camera_distance,
                "azimuth": config.camera_azimuth,
                "elevation": config.camera_elevation,
            },
            "versions": {"metaworld": getattr(metaworld, "__version__", "3"), "mujoco": mujoco.__version__},
        }
