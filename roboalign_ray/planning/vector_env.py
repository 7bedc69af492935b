"""Gymnasium's vector environment over a world model: sub-environments are rows of one batch on one device.

    envs = gymnasium.make_vec("RoboAlign/WorldModel-v0", num_envs=8, world_model="shipped", reward="judged")

A sub-environment's frames depend on its seed and its actions alone, as far as the world model keeps that promise
(`WorldModel`), whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.planning.costs import PlanningState
from roboalign_ray.planning.episodes import EpisodeSoFar
from roboalign_ray.planning.options import INSTRUCTION, VIEWS, Setup, WorldModelOptions, open_setup
from roboalign_ray.planning.rows import Rows
from roboalign_ray.planning.state_files import read_states, state_arrays
from roboalign_ray.planning.step_rewards import StepReward, step_rewards

RENDER_MODES = ("rgb_array", "rgb_array_list")
AUTORESET_MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


class WorldModelVectorEnv(VectorEnv):
    """See `WorldModelOptions` for the options; actions are float32 [n, A] within the bounds, in physical units.

    Rewards: the newest frame's score where the reward scores frames; else how much the score of the clip since the
    episode's start has risen, so that an episode's rewards add up to the score of its clip.

    Info, per sub-environment, with a mask under "_" and the name, as Gymnasium has it: `frames_since_refresh`;
    `score`, the reward's score of the clip, or of the frame; where the student judges also `judged`, its six scores in
    points by name, and `uncertainty`, its standard deviation in points.

    Args:
        num_envs: sub-environments n.
        autoreset_mode: NEXT_STEP begins a new episode in the step behind the last one, whose action is not read;
            SAME_STEP in the last one itself, whose observation and info are then `final_obs` and `final_info` of info;
            DISABLED leaves that to `reset(options={"reset_mask": bool [n]})`.
        render_mode: "rgb_array" or "rgb_array_list".
        setup: parts that are open already, in place of options.
        options: fields of `WorldModelOptions`.

    Raises:
        UserError: an option cannot be used.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        setup: Setup | None = None,
        **options: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise UserError(f"is {num_envs!r}", where="num_envs", remedy="give at least 1")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise UserError(f"is {render_mode!r}", where="render_mode", remedy=" or ".join(RENDER_MODES))
        mode = _autoreset_mode(autoreset_mode)
        self.setup = setup or open_setup(WorldModelOptions.of(options))
        self.num_envs, self.render_mode = int(num_envs), render_mode
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": self.setup.fps,
            "autoreset_mode": mode,
        }
        self.single_action_space = self.setup.action_space()
        self.single_observation_space = self.setup.observation_space()
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.generators: dict[int, np.random.Generator] = {}
        self._episodes: dict[int, EpisodeSoFar] = {}
        self._rows = Rows(self.setup.model)
        self._shown: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]

    # --- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: sub-environment i gets seed + i; or one seed each. None goes on with the generators there are.
            options: "reset_mask", bool [n]: only these begin anew.

        Returns:
            observations of all sub-environments, and info of those that began.

        Raises:
            UserError: a seed or the mask cannot be used.
        """
        began = self._masked((options or {}).get("reset_mask"))
        self._seed(seed, began)
        self._begin(began)
        return self._observations(), self._infos(began, {})

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One frame further; see `VectorEnv.step`.

        Raises:
            UserError: before the first reset, an episode is over and automatic resets are off, or an action is of the
                wrong shape, not finite or out of bounds.
        """
        ended = [number for number in range(self.num_envs) if self._episode(number).over]
        if ended and self.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
            raise UserError(
                f"the episode of sub-environment {ended[0]} is over",
                where="step",
                remedy="reset it: reset(options={'reset_mask': …})",
            )
        moving = [number for number in range(self.num_envs) if number not in ended]
        values = self._checked(actions, moving)
        if ended:
            self._begin(ended)
        scored = self._advance(values, moving)
        rewards, terminated, truncated = np.zeros(self.num_envs), *np.zeros((2, self.num_envs), np.bool_)
        for number, given in scored.items():
            episode, bound = self._episodes[number], self.setup.options.success
            rewards[number] = given.reward
            terminated[number] = bound is not None and given.score is not None and given.score.total >= bound
            truncated[number] = episode.steps >= self.setup.options.horizon
            episode.over = bool(terminated[number] or truncated[number])
        infos = self._infos([*ended, *moving], scored, self._renewed(moving, scored))
        return self._observations(), rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """Per sub-environment what is seen now, uint8 [H, V * W, 3], or the list of what was seen since the last call.

        Views stand side by side.
        """
        if self.render_mode is None:
            return None
        if self.render_mode == "rgb_array":
            return tuple(_side_by_side(self._episode(number).last) for number in range(self.num_envs))
        shown, self._shown = self._shown, [[] for _ in range(self.num_envs)]
        return tuple(shown)

    # --- planning ----------------------------------------------------------------------------------------------------

    def branch(
        self, rows: Sequence[int], n: int, *, seed: int | None = None, render_mode: str | None = None
    ) -> WorldModelVectorEnv:
        """An environment of n copies of each chosen sub-environment, which share their history with this one.

        Sub-environment k * n + i of the new one is the i-th copy of `rows[k]`. This one stays as it is.

        Args:
            rows: numbers of sub-environments.
            n: copies of each.
            seed: copy j goes on with seed + j, from the next frame on; None draws a seed.
            render_mode: of the new one.

        Raises:
            UserError: no such sub-environment, or a number is out of range.
        """
        if not len(rows) or n < 1:
            raise UserError(f"{n} copies of {len(rows)} sub-environments", where="branch")
        for row in rows:
            self._episode(row)
        first = int(self.np_random.integers(2**31)) if seed is None else checked_seed(seed)
        count = len(rows) * n
        made = WorldModelVectorEnv(
            count,
            autoreset_mode=self.metadata["autoreset_mode"],
            render_mode=render_mode,
            setup=self.setup,
        )
        made.generators = {copy: seeding.np_random(first + copy)[0] for copy in range(count)}
        seeds = [int(made.generators[copy].integers(2**63)) for copy in range(count)]
        groups = [tuple(seeds[place * n : (place + 1) * n]) for place in range(len(rows))]
        made.np_random = seeding.np_random(first)[0]
        made._rows = self._rows.branched(rows, groups)
        behind = [self._episodes[row].copied() for row in rows for _ in range(n)]
        made._episodes = dict(enumerate(behind))
        return made

    def save_state(self) -> dict[str, np.ndarray]:
        """All sub-environments as arrays of numbers: `np.savez(path, **envs.save_state())` writes them.

        Raises:
            UserError: before the first reset.
        """
        episodes = [self._episode(number) for number in range(self.num_envs)]
        generators = [self.generators[number] for number in range(self.num_envs)]
        setup = self.setup
        return state_arrays(setup.model, setup.identity, self._rows.cohorts, episodes, generators)

    def load_state(self, source: str | Path | Mapping[str, np.ndarray]) -> None:
        """Go on where `save_state` was called, in any process with the same weights.

        Args:
            source: the arrays, or the path of an npz file of them.

        Raises:
            UserError: no such state, damaged, of another world model, or of another number of sub-environments.
        """
        saved = read_states(source, self.setup.model, self.setup.identity)
        if len(saved.episodes) != self.num_envs:
            count = len(saved.episodes)
            raise UserError(f"is of {count} sub-environments, there are {self.num_envs}", where="saved state")
        self._rows = Rows(self.setup.model, saved.cohorts)
        self._episodes = dict(enumerate(saved.episodes))
        self.generators = dict(enumerate(saved.generators))
        self._shown = [[] for _ in range(self.num_envs)]

    def planning_state(self, row: int = 0) -> PlanningState:
        """Where candidates of a sub-environment start: what `ModelCost` takes.

        Raises:
            UserError: no such sub-environment, or it has not begun.
        """
        episode = self._episode(row)
        cohort, place = self._rows.find(row)
        return PlanningState(cohort.state, place, cohort.age, episode.clip())

    # --- inside ------------------------------------------------------------------------------------------------------

    def _episode(self, number: int) -> EpisodeSoFar:
        if not 0 <= number < self.num_envs:
            raise UserError(f"no sub-environment {number} among {self.num_envs}", where="row")
        if number not in self._episodes:
            raise UserError("has not begun", where="environment", remedy="call reset first")
        return self._episodes[number]

    def _masked(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise UserError(f"is {mask!r:.60}, not bool [{self.num_envs}]", where="reset_mask")
        began = np.flatnonzero(mask).tolist()
        if not began:
            raise UserError("names no sub-environment", where="reset_mask")
        for number in range(self.num_envs):
            if number not in began:
                self._episode(number)
        return began

    def _seed(self, seed: int | Sequence[int | None] | None, began: Sequence[int]) -> None:
        if isinstance(seed, int | np.integer):
            super().reset(seed=checked_seed(seed))
            seeds: list[int | None] = [int(seed) + number for number in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} for {self.num_envs} sub-environments", where="seed")
        for number in began:
            given = seeds[number]
            if given is not None or number not in self.generators:
                checked = None if given is None else checked_seed(given)
                self.generators[number] = seeding.np_random(checked)[0]

    def _begin(self, began: Sequence[int]) -> None:
        setup = self.setup
        cohorts, clips = setup.starts.begin(setup.model, began, [self.generators[number] for number in began])
        self._rows.begin(cohorts)
        for number, clip in zip(began, clips, strict=True):
            self._episodes[number] = EpisodeSoFar.of(clip)
            self._show(number)
        old = [number for number in began if self._episodes[number].frames]
        if old and setup.scorer is not None and setup.keeps_frames:
            scores = setup.scorer.scores([self._episodes[number].clip() for number in old])
            for number, score in zip(old, scores, strict=True):
                self._episodes[number].score = 0.0 if isinstance(score, Failed) else score.total

    def _advance(self, actions: np.ndarray, moving: Sequence[int]) -> dict[int, StepReward]:
        """One frame for the sub-environments that move, and what it earned them."""
        frames = self._rows.step(actions, moving)
        for number in moving:
            self._episodes[number].add(frames[number], actions[number], whole=self.setup.keeps_frames)
            self._show(number)
        return step_rewards(self.setup.scorer, {number: self._episodes[number] for number in moving})

    def _checked(self, actions: np.ndarray, moving: Sequence[int]) -> np.ndarray:
        """Actions float32 [n, A]; those of sub-environments that begin anew are not looked at."""
        values = np.array(actions, np.float32)
        if values.shape != self.action_space.shape:
            raise UserError(
                f"are of shape {list(values.shape)}, not {list(self.action_space.shape or ())}",
                where="actions",
            )
        low, high = self.setup.low, self.setup.high
        for number in moving:
            if not np.isfinite(values[number]).all():
                raise UserError(f"{values[number]} is not finite", where=f"action {number}")
            if (values[number] < low).any() or (values[number] > high).any():
                dim = int(np.argmax((values[number] < low) | (values[number] > high)))
                raise UserError(
                    f"dimension {dim} is {values[number, dim]:g}, outside {low[dim]:g} to {high[dim]:g}",
                    where=f"action {number}",
                    remedy="clip it, as gymnasium.wrappers.ClipAction does",
                )
        return values

    def _observations(self) -> Any:
        now = [self._episode(number) for number in range(self.num_envs)]
        if self.setup.options.observation == "rgb":
            return np.stack([episode.last[0] for episode in now])
        return {
            VIEWS: np.stack([episode.last for episode in now]),
            INSTRUCTION: tuple(episode.instruction for episode in now),
        }

    def _renewed(self, moving: Sequence[int], scored: Mapping[int, StepReward]) -> dict[int, dict[str, Any]]:
        """Begin anew where an episode has just ended, if this is asked for; the last observation and info of each."""
        if self.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            return {}
        ended = [number for number in moving if self._episodes[number].over]
        final = {
            n: {"final_obs": self._observation(n), "final_info": self._step_info(n, scored)} for n in ended
        }
        if ended:
            self._begin(ended)
        return final

    def _observation(self, number: int) -> Any:
        episode = self._episodes[number]
        if self.setup.options.observation == "rgb":
            return episode.last[0]
        return {VIEWS: episode.last, INSTRUCTION: episode.instruction}

    def _step_info(self, number: int, scored: Mapping[int, StepReward]) -> dict[str, Any]:
        info: dict[str, Any] = {"frames_since_refresh": self._rows.since_refresh(number)}
        return info | (scored[number].info() if number in scored else {})

    def _infos(
        self,
        numbers: Sequence[int],
        scored: Mapping[int, StepReward],
        final: Mapping[int, dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for number in numbers:
            ended = final[number] if final and number in final else None
            infos = infos if ended is None else self._add_info(infos, ended, number)
            infos = self._add_info(infos, self._step_info(number, scored if ended is None else {}), number)
        return infos

    def _show(self, number: int) -> None:
        if self.render_mode == "rgb_array_list":
            self._shown[number].append(_side_by_side(self._episodes[number].last))


def _side_by_side(views: np.ndarray) -> np.ndarray:
    """Uint8 [H, V * W, 3] of [V, H, W, 3]."""
    return np.concatenate(list(views), axis=1)


def checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"is {seed!r}", where="seed", remedy="give a whole number, 0 or more")
    return int(seed)


def _autoreset_mode(given: AutoresetMode | str) -> AutoresetMode:
    named = getattr(given, "value", given)
    for mode in AUTORESET_MODES:
        if named == mode.value:
            return mode
    names = " or ".join(repr(mode.value) for mode in AUTORESET_MODES)
    raise UserError(f"is {named!r}", where="autoreset_mode", remedy=names)
