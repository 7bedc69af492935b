"""The episode: the common type of all sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roboalign_ray.episodes.action_kinds import ACTION_KINDS, ActionKind
from roboalign_ray.foundation.failures import UserError, printable


class EpisodeError(UserError):
    """An episode that cannot be used. Sources raise it; readers quarantine the episode with this reason."""


@dataclass(frozen=True)
class Outcome:
    """Result and labels of an episode. None, or an absent key, means unknown.

    Attributes:
        success: whether the task is completed at the end.
        success_per_frame: bool [T], if known per frame.
        privileged: arrays over time from a simulator's state, each [T, ...]; metres, newtons, quaternions wxyz.
            Names in use: "object_position" [T, 3], "target_position" [T, 3], "gripper_position" [T, 3],
            "gripper_opening" [T], "contact" [T] bool (gripper touches the object), "contact_force" [T] newtons,
            "penetration" [T] metres (deepest contact, >= 0).
    """

    success: bool | None = None
    success_per_frame: np.ndarray | None = None
    privileged: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """One robot episode: camera frames, actions, state, and the instruction.

    `actions[t]` leads from frame t to frame t+1; the last one may be a hold.

    Attributes:
        episode_id: unique within its source, "source/…".
        group_id: episodes that share a start state or scene share it; splits never separate a group.
        frames: view name -> uint8 [T, H, W, 3] RGB.
        actions: float32 [T, A].
        action_names: A names, with the unit in brackets if there is one.
        action_kinds: kind of each dimension (`action_kinds`); if omitted, all are unknown.
        state: proprioception float32 [T, S], or None.
        instruction: the sentence given to the robot; "" if the source has none.
        fps: frames per second.
        embodiment: robot name, for example "sawyer" or "franka".
        outcome: labels, if known.
        provenance: source, files, generator settings: all that is needed to find or repeat the episode (JSON types
            only).
    """

    episode_id: str
    group_id: str
    frames: Mapping[str, np.ndarray]
    actions: np.ndarray
    instruction: str
    fps: float
    embodiment: str
    action_names: tuple[str, ...] = ()
    action_kinds: tuple[ActionKind, ...] = ()
    state: np.ndarray | None = None
    outcome: Outcome = Outcome()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.frames:
            raise EpisodeError("has no camera view", where=self.episode_id)
        for view, frames in self.frames.items():
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
                raise EpisodeError(
                    f"view '{view}' is {frames.dtype} {frames.shape}, not uint8 [T, H, W, 3]",
                    where=self.episode_id,
                )
            if len(frames) != len(self.actions):
                raise EpisodeError(
                    f"view '{view}' has {len(frames)} frames for {len(self.actions)} actions",
                    where=self.episode_id,
                )
        if self.actions.ndim != 2 or not np.isfinite(self.actions).all():
            raise EpisodeError("actions are not a finite [T, A] array", where=self.episode_id)
        self._check_kinds()
        self._check_texts()
        if self.state is not None and len(self.state) != len(self.actions):
            raise EpisodeError(
                f"{len(self.state)} states for {len(self.actions)} frames", where=self.episode_id
            )
        if not self.fps > 0:
            raise EpisodeError(f"fps is {self.fps}", where=self.episode_id)

    def _check_kinds(self) -> None:
        if not self.action_kinds:
            object.__setattr__(self, "action_kinds", ("unknown",) * self.actions.shape[1])
        if len(self.action_kinds) != self.actions.shape[1]:
            raise EpisodeError(
                f"{len(self.action_kinds)} action kinds for {self.actions.shape[1]} dimensions",
                where=self.episode_id,
            )
        for kind in self.action_kinds:
            if kind not in ACTION_KINDS:
                raise EpisodeError(f"no kind of action is named '{kind}'", where=self.episode_id)

    def _check_texts(self) -> None:
        """Refuse unpaired surrogates, which JSON may hold ("\\ud800") and no file can store."""
        texts = {"instruction": self.instruction, "robot": self.embodiment, "group": self.group_id}
        names = ((f"name {text!r}", text) for text in (self.episode_id, *self.frames, *self.action_names))
        for what, text in (*texts.items(), *names):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise EpisodeError(f"its {what} holds half a character", where=printable(self.episode_id))

    @property
    def angle_dims(self) -> tuple[int, ...]:
        """Action dimensions of the kind angle."""
        return tuple(d for d, kind in enumerate(self.action_kinds) if kind in ("angle", "delta_angle"))

    @property
    def length(self) -> int:
        """Number of frames in every view."""
        return len(self.actions)

    def view(self, name: str | None = None) -> np.ndarray:
        """Frames uint8 [T, H, W, 3] of one view; None takes the first.

        Raises:
            EpisodeError: there is no such view.
        """
        if name is None:
            return next(iter(self.frames.values()))
        if name not in self.frames:
            raise EpisodeError(
                f"has no view '{name}'", where=self.episode_id, remedy=f"views: {', '.join(self.frames)}"
            )
        return self.frames[name]
