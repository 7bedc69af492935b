"""One Meta-World environment: start states, steps between frames, cameras and labels; its state can be restored.

A start state is a function of (seed, task, index). An interval between two frames is several simulator steps: a driver
gives a command for each (`interval`), or one action is held over all of them (`hold`).
"""

from __future__ import annotations

import atexit
import hashlib
import warnings
import weakref
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import reduce

from roboalign_ray.config.episodes import SimulationConfig
from roboalign_ray.episodes.sources.metaworld_labels import LabelReader
from roboalign_ray.episodes.sources.metaworld_variants import CLOSE, OPEN, Driver, Wanderer

_WRIST_CAMERA = "gripperPOV"  # its name in Meta-World's model of the arm
ACTION_SCALE = 0.01  # metres that a command of 1 moves the hand in a simulator step: Meta-World's default
_PLAIN = (np.ndarray, bool, int, float, str, tuple)  # values of an environment that a step may change
_PRELUDE = 16  # maximum of simulator steps before frame 0, so that episodes begin in different poses


def random_generator(*parts: Any) -> np.random.Generator:
    """A generator seeded by the given words, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def _close(renderer: weakref.ReferenceType[Any]) -> None:
    living = renderer()
    if living is not None:
        living.close()


@dataclass(frozen=True)
class SimulatorState:
    """A moment of a simulator, to return to.

    Attributes:
        physics: float64, MuJoCo's integration state.
        attributes: plain values of the environment, by name.
    """

    physics: np.ndarray
    attributes: dict[str, Any]


class MetaworldSimulator:
    """One Meta-World environment with its camera and its label reader.

    Args:
        task: a name of `metaworld_tasks.SENTENCES`; the caller checks it.
        config: cameras, frame size, steps of an interval, and the seed of start states.
    """

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
        """Random waypoints inside the visible part of the workspace; `everywhere` leaves it."""
        whole = self.env.mocap_low, self.env.mocap_high
        low = np.maximum(whole[0], [-0.3, 0.45, 0.06])
        high = np.minimum(whole[1], [0.3, 0.85, 0.3])
        return Wanderer(low, high, rng, gripper, whole)

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
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps between two frames.

        Args:
            observation: the current one.
            driver: gives a command for every simulator step.
            succeeded: whether the task was completed before.

        Returns:
            the next observation; the action float32 [4] that the steps add up to, metres and the last gripper command;
            success flags bool [steps], one behind each step, so that the last one belongs to the next frame.
        """
        total, flags = np.zeros(4, dtype=np.float64), []
        for _ in range(self.config.steps_per_frame):
            action = np.clip(driver(observation, succeeded), -1, 1).astype(np.float32)
            observation, _, _, _, info = self.env.step(action)
            total[:3] += action[:3].astype(np.float64) * self.env.action_scale
            total[3] = action[3]
            flags.append(bool(info["success"]))
            succeeded = succeeded or flags[-1]
        return observation, total.astype(np.float32), np.array(flags)

    def hold(self, action: np.ndarray) -> Driver:
        """A driver that spreads an action evenly over the steps of an interval: metres [3] and a gripper command."""
        steps = self.config.steps_per_frame * self.env.action_scale
        command = np.append(np.asarray(action[:3], np.float64) / steps, action[3])
        return lambda observation, succeeded: command

    def save(self) -> SimulatorState:
        """The current state. Steps after `restore` repeat bit for bit."""
        import mujoco

        env, spec = self.env, mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(env.model, spec))
        mujoco.mj_getState(env.model, env.data, physics, spec)
        kept = {k: copy(v) for k, v in vars(env).items() if v is None or isinstance(v, _PLAIN)}
        return SimulatorState(physics, kept)

    def restore(self, state: SimulatorState) -> None:
        """Return to a state that this simulator gave since its last `reset`."""
        import mujoco

        env, spec = self.env, mujoco.mjtState.mjSTATE_INTEGRATION
        vars(env).update({name: copy(value) for name, value in state.attributes.items()})
        mujoco.mj_setState(env.model, env.data, state.physics, spec)
        mujoco.mj_forward(env.model, env.data)  # positions of bodies, for cameras and labels
        mujoco.mj_setState(
            env.model, env.data, state.physics, spec
        )  # the solver's first guess, which it changed

    def is_solved(self) -> bool:
        """Whether the task is complete without any motion. The state stays as it is."""
        state = self.save()
        *_, info = self.env.step(np.array([0, 0, 0, OPEN], np.float32))
        self.restore(state)
        return bool(info["success"])

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
