"""Gymnasium's environment over a world model: the vector environment with one row.

env = gymnasium.make("RoboAlign/WorldModel-v0", world_model="shipped", reward="judged")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

from roboalign_ray.planning.costs import PlanningState
from roboalign_ray.planning.options import INSTRUCTION, VIEWS
from roboalign_ray.planning.vector_env import WorldModelVectorEnv, checked_seed
from roboalign_ray.planning.window import FrameWindow

_HUMAN = "human"


class WorldModelEnv(gymnasium.Env):
    """One sub-environment of `WorldModelVectorEnv`; options, rewards and info are those.

    Args:
        render_mode: "rgb_array", "rgb_array_list", or "human", which shows a window and needs pygame.
        options: fields of `WorldModelOptions`.

    Attributes:
        vector: the vector environment of one row that does the work.

    Raises:
        UserError: an option cannot be used, or pygame is missing.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list", _HUMAN], "render_fps": 5}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        inner = "rgb_array" if render_mode == _HUMAN else render_mode
        self._window = FrameWindow() if render_mode == _HUMAN else None
        self.vector = WorldModelVectorEnv(
            1, autoreset_mode=AutoresetMode.DISABLED, render_mode=inner, **options
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self.vector.metadata["render_fps"]}
        self.action_space = self.vector.single_action_space
        self.observation_space = self.vector.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see `gymnasium.Env.reset`. The seed gives the start state and the predictions."""
        if seed is not None:
            self.vector.np_random = seeding.np_random(checked_seed(seed))[0]  # of branches without a seed
        super().reset(seed=seed)
        self.vector.generators = {0: self.np_random}
        observations, infos = self.vector.reset()
        self._draw()
        return _first(observations), _first_info(infos)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One frame further; see `WorldModelVectorEnv.step`."""
        values = np.asarray(action, np.float32)
        observations, rewards, terminated, truncated, infos = self.vector.step(values[None])
        self._draw()
        flags = bool(terminated[0]), bool(truncated[0])
        return _first(observations), float(rewards[0]), *flags, _first_info(infos)

    def render(self) -> Any:
        """What is seen now, uint8 [H, V * W, 3]; or the list of what was seen since the last call; None in a window."""
        shown = self.vector.render()
        return None if shown is None or self._window is not None else shown[0]

    def close(self) -> None:
        """Close the window, where there is one."""
        if self._window is not None:
            self._window.close()

    def branch(self, n: int, *, seed: int | None = None) -> WorldModelVectorEnv:
        """See `WorldModelVectorEnv.branch`: n copies of this environment."""
        return self.vector.branch([0], n, seed=seed)

    def save_state(self) -> dict[str, np.ndarray]:
        """See `WorldModelVectorEnv.save_state`."""
        return self.vector.save_state()

    def load_state(self, source: str | Path | Mapping[str, np.ndarray]) -> None:
        """See `WorldModelVectorEnv.load_state`."""
        self.vector.load_state(source)
        self.np_random = self.vector.generators[0]

    def planning_state(self, row: int = 0) -> PlanningState:
        """See `WorldModelVectorEnv.planning_state`."""
        return self.vector.planning_state(row)

    def _draw(self) -> None:
        if self._window is not None:
            [frame] = self.vector.render() or ()
            self._window.show(frame, self.metadata["render_fps"])


def _first(observations: Any) -> Any:
    """The only sub-environment's observation."""
    if isinstance(observations, dict):
        return {VIEWS: observations[VIEWS][0], INSTRUCTION: observations[INSTRUCTION][0]}
    return observations[0]


def _first_info(infos: Mapping[str, Any]) -> dict[str, Any]:
    """The only sub-environment's info, without masks."""
    return {
        name: _first_info(values) if isinstance(values, dict) else values[0].item()
        for name, values in infos.items()
        if not name.startswith("_")
    }
