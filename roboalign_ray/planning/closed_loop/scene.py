"""A Meta-World episode while an agent acts in it, at the rate of a world model."""

from __future__ import annotations

import numpy as np

from roboalign_ray.config.episodes import SimulationConfig
from roboalign_ray.episodes.sources.metaworld_simulator import ACTION_SCALE, MetaworldSimulator
from roboalign_ray.episodes.sources.metaworld_tasks import sentence
from roboalign_ray.episodes.sources.metaworld_variants import Driver
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.progress.distances import distances
from roboalign_ray.planning.scoring import ClipSoFar
from roboalign_ray.world_model.protocol import ModelCard

VIEWS = ("front", "wrist")  # of the simulator; a world model of V views was trained on the first V
_PHYSICS_HZ = 80.0
_ACTION_DIMS = 4


class Scene:
    """What was seen and done since an episode began.

    Args:
        simulator: of the task.
        start: index of the start state; a function of the simulator's seed, task and index.

    Attributes:
        frames: uint8 [V, H, W, 3] each; frame 0 is the start.
        actions: float32 [4] each; actions[t] leads from frame t to frame t+1.
        success_at: number of the first frame by which the task was complete, at any simulator step; None before.
    """

    def __init__(self, simulator: MetaworldSimulator, start: int) -> None:
        self.simulator, self.start = simulator, start
        self._observation = simulator.reset(start)
        self.instruction = sentence(simulator.task, start)
        self.frames = [self.picture()]
        self.actions: list[np.ndarray] = []
        self.success_at: int | None = None

    def picture(self) -> np.ndarray:
        """What the cameras see now, uint8 [V, H, W, 3]."""
        return np.stack([self.simulator.frame(view) for view in self.simulator.config.views])

    def distances(self) -> np.ndarray:
        """True object–target and hand–object distance now, metres, float32 [2]; agents do not see it."""
        return distances(self.simulator.labels.read())

    def act(self, action: np.ndarray) -> None:
        """Hold an action, metres and a gripper command, until the next frame."""
        self.drive(self.simulator.hold(action))

    def drive(self, driver: Driver) -> None:
        """Follow a driver, which gives a command for every simulator step, until the next frame."""
        done = self.success_at is not None
        self._observation, action, flags = self.simulator.interval(self._observation, driver, done)
        self.actions.append(action)
        self.frames.append(self.picture())
        # The flag of a step tells of the state behind it, so it belongs to the frame that follows.
        if flags.any() and not done:
            self.success_at = len(self.actions)

    def expert_action(self) -> np.ndarray:
        """What the scripted expert's commands until the next frame add up to, float32 [4]. Nothing moves."""
        policy, state = self.simulator.policy(), self.simulator.save()
        _, action, _ = self.simulator.interval(
            self._observation, lambda observation, done: policy(observation), False
        )
        self.simulator.restore(state)
        return action

    def clip(self) -> ClipSoFar:
        """For costs that judge what was seen so far."""
        frames = np.stack(self.frames[1:]) if self.actions else np.empty((0, *self.frames[0].shape), np.uint8)
        actions = np.stack(self.actions) if self.actions else np.empty((0, _ACTION_DIMS), np.float32)
        return ClipSoFar(self.instruction, self.frames[0], frames, actions)


def simulation_of(card: ModelCard, base: SimulationConfig) -> SimulationConfig:
    """The simulator's settings that give a world model's frames and rate.

    Args:
        base: cameras and seed.

    Raises:
        UserError: the world model's actions, rate, views or robot are not the simulator's.
    """
    where, actions = "world model", card.actions
    if actions is None or actions.rate is None:
        raise UserError(
            "its action card does not say its rate", where=where, remedy="train it on a store with a rate"
        )
    if actions.embodiments and "sawyer" not in actions.embodiments:
        raise UserError(f"controls {', '.join(actions.embodiments)}, Meta-World has a sawyer", where=where)
    if actions.names != ("delta_x", "delta_y", "delta_z", "gripper"):
        raise UserError(f"its actions are {', '.join(actions.names)}, not those of Meta-World", where=where)
    steps = _PHYSICS_HZ / actions.rate
    if abs(steps - round(steps)) > 0.01 or round(steps) < 1:
        raise UserError(
            f"its rate of {actions.rate:g} Hz does not divide the simulator's {_PHYSICS_HZ:g} Hz", where=where
        )
    if card.views > len(VIEWS):
        raise UserError(f"has {card.views} views, the simulator {len(VIEWS)}", where=where)
    return base.model_copy(
        update={
            "views": VIEWS[: card.views],
            "height": card.height,
            "width": card.width,
            "steps_per_frame": round(steps),
        }
    )


def action_limits(simulation: SimulationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest action of an interval, float64 [4] each."""
    reach = simulation.steps_per_frame * ACTION_SCALE
    high = np.array([reach, reach, reach, 1.0])
    return -high, high
