"""Reads the prompts of window names, on the worker that needs their pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.episodes.windows import Window, WindowSpec, cut_window
from roboalign_ray.world_model.protocol import Prompt

_EPISODES_KEPT = 16


def prompt_spec(config: EpisodesConfig, horizon: int, height: int, width: int) -> WindowSpec:
    """Frame 0 and the `horizon` frames after it."""
    view = config.first_view
    return WindowSpec(horizon + 1, stride=config.frame_stride, view=view, height=height, width=width)


@dataclass(frozen=True)
class Recorded:
    """The real episode's data for the clip of a prompt: T transitions, T + 1 frames.

    Attributes:
        frames: uint8 [T + 1, V, H, W, 3], frame 0 and the real continuation.
        views: names of the V cameras.
        actions: float32 [T, A], in the episode's units; actions[t] leads from frame t to frame t+1.
        action_names, action_kinds: as in `Episode`.
        fps: frames per second of the clip, which may skip frames of the episode.
        embodiment: robot name.
        state: proprioception float32 [T + 1, S] at the frames, or None.
    """

    frames: np.ndarray
    views: tuple[str, ...]
    actions: np.ndarray
    action_names: tuple[str, ...]
    action_kinds: tuple[str, ...]
    fps: float
    embodiment: str
    state: np.ndarray | None


class PromptReader:
    """Reads the windows of prompts from the episode store; frame 0 is its own context.

    Args:
        config: store, view and stride.
        height, width: frame size of the world model, pixels.
        views: V, number of camera views that it predicts: the first V of `config.views` where it names some; else the
            view that the config names, or each episode's first one, followed by the episode's next ones in their order.
    """

    def __init__(self, config: EpisodesConfig, height: int, width: int, views: int = 1) -> None:
        self._config, self._size, self._views = config, (height, width), views
        self._store = open_store(config.store)
        self._episode = lru_cache(_EPISODES_KEPT)(self._read)

    def prompt(self, name: PromptName, longest: int) -> Prompt:
        """The prompt. Its horizon is in the name; if not, it is `longest`.

        Raises:
            UserError: there is no such episode.
            EpisodeError: the episode cannot be decoded, or is too short.
        """
        horizon = name.horizon or longest
        windows = list(self._windows(name, horizon).values())
        first = windows[0]
        return Prompt(
            prompt_id=name.prompt_id,
            context=np.stack([window.context for window in windows]),
            start=np.stack([window.frames[0] for window in windows]),
            actions=first.actions[:horizon],
            instruction=first.instruction,
        )

    def recorded(self, name: PromptName, horizon: int) -> Recorded:
        """The real clip of a prompt, `horizon` frames after frame 0.

        Raises:
            UserError: there is no such episode.
            EpisodeError: the episode cannot be decoded, or is too short.
        """
        windows, episode = self._windows(name, horizon), self._episode(name.episode_id)
        window = next(iter(windows.values()))
        stride = self._config.frame_stride
        numbers = window.start + stride * np.arange(horizon + 1)
        return Recorded(
            frames=np.stack([window.frames for window in windows.values()], axis=1),
            views=tuple(windows),
            actions=window.actions[:horizon],
            action_names=episode.action_names,
            action_kinds=episode.action_kinds,
            fps=episode.fps / stride,
            embodiment=episode.embodiment,
            state=None if episode.state is None else episode.state[numbers],
        )

    def _windows(self, name: PromptName, horizon: int) -> dict[str, Window]:
        """The window by view, for as many views as the world model predicts."""
        episode = self._episode(name.episode_id)
        first = self._config.first_view or next(iter(episode.frames))
        others = self._config.views[1:] or tuple(view for view in episode.frames if view != first)
        views = [first, *others][: self._views]
        if len(views) < self._views:
            raise EpisodeError(
                f"has views {', '.join(views)}; the world model predicts {self._views}", where=name.episode_id
            )
        spec = prompt_spec(self._config, horizon, *self._size)
        return {
            view: cut_window(episode, replace(spec, view=view), name.start, context=name.start)
            for view in views
        }

    def _read(self, episode_id: str) -> Episode:
        return self._store.read(episode_id)
