"""Simulated episodes: Meta-World's Sawyer arm, rendered, with labels read from the simulator.

A start state is a function of (task, seed, index), and every variant of it begins in exactly that state, so episodes of
one start differ only by the robot's actions. Episodes are the same bit for bit whenever they are simulated again.
"""

from __future__ import annotations

import atexit
import hashlib
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from einops import reduce

from roboalign_ray.config.episodes import SimulationConfig
from roboalign_ray.episodes.action_kinds import ActionKind
from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.metaworld_labels import LabelReader
from roboalign_ray.episodes.sources.metaworld_tasks import DEFAULT_TASKS, check_task, sentence
from roboalign_ray.episodes.sources.metaworld_variants import (
    CLOSE,
    OPEN,
    VARIANTS,
    Driver,
    KeepMoving,
    Wanderer,
    check_variant,
)
from roboalign_ray.episodes.sources.opengl import require_simulator

_WRIST_CAMERA = "gripperPOV"  # its name in Meta-World's model of the arm
ACTION_KINDS: tuple[ActionKind, ...] = ("delta", "delta", "delta", "hold")
ACTION_SCALE = 0.01  # metres that a command of 1 moves the hand in a simulator step: Meta-World's default
ACTION_NAMES = ("delta_x [m]", "delta_y [m]", "delta_z [m]", "gripper [-1 open, 1 closed]")
_PRELUDE = 16  # maximum of simulator steps before frame 0, so that episodes begin in different poses


def random_generator(*parts: Any) -> np.random.Generator:
    """A generator seeded by the given words, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def _close(renderer: weakref.ReferenceType[Any]) -> None:
    living = renderer()
    if living is not None:
        living.close()


class _Simulator:
    """One Meta-World environment with its camera and its label reader."""

    def __init__(self, task: str, config: SimulationConfig) -> None:
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        self.task, self.config = task, config
        self._policy_class: Any = ENV_POLICY_MAP[f"{task}-v3"]
        env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # Observations must contain the goal, which the experts need; the cached space would clip it to zero.
        env._partially_observable, env._set_task_called, env.max_path_length = False, True, 10**9
        del env.sawyer_observation_space
        self.env: Any = env
        self.labels = LabelReader(env)
        # Multisampling and shadows cost ten times the rest of the picture under software OpenGL.
        env.model.vis.quality.offsamples = 0
        env.model.vis.quality.shadowsize = 0
        height, width = config.supersample * config.height, config.supersample * config.width
        env.model.vis.global_.offheight, env.model.vis.global_.offwidth = height, width
        self._renderer = mujoco.Renderer(env.model, height, width)
        # MuJoCo shuts EGL down at exit; handlers that are registered later, like this one, run before that.
        atexit.register(_close, weakref.ref(self._renderer))
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.lookat[:] = config.camera_lookat
        self._camera.distance = config.camera_distance
        self._camera.azimuth, self._camera.elevation = config.camera_azimuth, config.camera_elevation

    def policy(self) -> Any:
        """A fresh scripted expert: observation -> action [4]."""
        policy = self._policy_class()

        def act(observation: np.ndarray) -> np.ndarray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the experts exceed the action limit in most steps
                return np.asarray(policy.get_action(observation), dtype=np.float64)

        return act

    def wanderer(self, rng: np.random.Generator, gripper: float | None = None) -> Wanderer:
        """Random waypoints inside the visible part of the workspace."""
        low = np.maximum(self.env.mocap_low, [-0.3, 0.45, 0.06])
        high = np.minimum(self.env.mocap_high, [0.3, 0.85, 0.3])
        return Wanderer(low, high, rng, gripper)

    def reset(self, index: int) -> np.ndarray:
        """Set start state `index`. Return the observation there."""
        env, words = self.env, (self.config.seed, self.task, index)
        rng = random_generator("start", *words)
        env.seeded_rand_vec, env._freeze_rand_vec = True, False
        env.seed(int(rng.integers(2**31)))
        env.reset()  # draws the positions of object and goal
        env._freeze_rand_vec = True
        observation, _ = env.reset()
        wander = self.wanderer(rng, gripper=CLOSE if rng.random() < 0.3 else OPEN)
        for _ in range(int(rng.integers(_PRELUDE + 1))):
            observation, *_ = env.step(wander(observation).astype(np.float32))
        return observation

    def interval(
        self, observation: np.ndarray, driver: Driver, succeeded: bool
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Steps between two frames: (observation, action [4] in metres and last gripper command, success flag)."""
        total, info = np.zeros(4, dtype=np.float64), {"success": False}
        for _ in range(self.config.steps_per_frame):
            action = np.clip(driver(observation, succeeded), -1, 1).astype(np.float32)
            observation, _, _, _, info = self.env.step(action)
            total[:3] += action[:3].astype(np.float64) * self.env.action_scale
            total[3] = action[3]
            succeeded = succeeded or bool(info["success"])
        return observation, total.astype(np.float32), bool(info["success"])

    def frame(self, view: str) -> np.ndarray:
        """Render uint8 [H, W, 3] RGB; each pixel is the mean of `supersample` squared rendered pixels."""
        self._renderer.update_scene(self.env.data, self._camera if view == "front" else _WRIST_CAMERA)
        side = self.config.supersample
        fine = self._renderer.render()
        pixels = reduce(fine.astype(np.float32), "(h a) (w b) c -> h w c", "mean", a=side, b=side)
        return np.rint(pixels).astype(np.uint8)

    def proprioception(self) -> np.ndarray:
        """float32 [4]: hand position in metres, gripper opening in [0, 1]."""
        return self.env._get_curr_obs_combined_no_goal()[:4].astype(np.float32)


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
        self._simulators: dict[str, _Simulator] = {}

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
            self._simulators[task] = _Simulator(task, self.config)
        simulator = self._simulators[task]
        return [self._episode(simulator, index, variant) for variant in self.config.variants]

    def _episode(self, simulator: _Simulator, index: int, variant: str) -> Episode | Quarantined:
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
            observation, action, success = simulator.interval(observation, driver, any(successes))
            actions.append(action)
            successes.append(success)
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
