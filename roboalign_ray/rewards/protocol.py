"""The interface of rewards: input of a group, and one score or one failure per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.student.model import Student


@dataclass(frozen=True)
class Scored:
    """One sample's reward.

    Attributes:
        total: the value that the objective maximises.
        components: named parts, for curves and tables.
        version: version of the scorer.
        per_frame: float64 [T], share of each frame in the total; None if the reward scores whole clips.
    """

    total: float
    components: Mapping[str, float] = field(default_factory=dict)
    version: int = 0
    per_frame: np.ndarray | None = field(default=None, compare=False)


Score = Scored | Failed


@dataclass(frozen=True)
class RewardInput:
    """Input of a reward: G samples of one start, T generated frames each, of V cameras.

    Attributes:
        instruction: the sentence; "" if there is none.
        start: uint8 [V, H, W, 3], frame 0.
        generated: uint8 [G, T, V, H, W, 3], frames 1 to T.
        real: uint8 [T, V, H, W, 3], the real continuation, if there is one.
        views: names of the V cameras; empty if unknown.
        actions: float32 [T, A], commanded, in the episode's units; actions[t] leads from frame t to frame t+1.
        action_names: A names, with the unit in brackets if there is one; empty if unknown.
        action_kinds: A kinds (docs/actions.md); empty if unknown.
        fps: frames per second of the clip; None if unknown.
        embodiment: robot name; "" if unknown.
        proprioception: float32 [T + 1, S], recorded in the real episode at frames 0 to T, if there is any.
    """

    instruction: str
    start: np.ndarray
    generated: np.ndarray
    real: np.ndarray | None = None
    views: tuple[str, ...] = ()
    actions: np.ndarray | None = None
    action_names: tuple[str, ...] = ()
    action_kinds: tuple[str, ...] = ()
    fps: float | None = None
    embodiment: str = ""
    proprioception: np.ndarray | None = None

    def fault(self) -> Failed | None:
        """The reason why no sample can be scored, an array of wrong shape or type; None if all fit."""
        generated, start, real = self.generated, self.start, self.real
        if generated.ndim != 6 or generated.shape[-1] != 3 or 0 in generated.shape:
            return Failed(f"generated frames are {generated.shape}, not [G, T, V, H, W, 3]", "shape")
        if start.shape != generated.shape[2:]:
            return Failed(f"the start frame is {start.shape}, generated ones {generated.shape[2:]}", "shape")
        if real is not None and real.shape != generated.shape[1:]:
            return Failed(f"generated frames are {generated.shape[1:]}, the real ones {real.shape}", "shape")
        for name, frames in (("generated", generated), ("start", start), ("real", real)):
            if frames is not None and frames.dtype != np.uint8:
                return Failed(f"{name} frames are {frames.dtype}, not uint8", "shape")
        frames, views = generated.shape[1], generated.shape[2]
        if self.views and len(self.views) != views:
            return Failed(f"{len(self.views)} names for {views} views", "shape")
        return _fault_beside(self, frames)


def _fault_beside(inputs: RewardInput, frames: int) -> Failed | None:
    """The error in actions or proprioception of a clip of `frames` generated frames; None if they fit."""
    actions, state = inputs.actions, inputs.proprioception
    if actions is not None:
        if actions.ndim != 2 or len(actions) != frames:
            return Failed(f"actions are {actions.shape}, not [{frames}, A]", "shape")
        for name, labels in (("names", inputs.action_names), ("kinds", inputs.action_kinds)):
            if labels and len(labels) != actions.shape[1]:
                return Failed(f"{len(labels)} {name} for {actions.shape[1]} action dimensions", "shape")
    if state is not None and (state.ndim != 2 or len(state) != frames + 1):
        return Failed(f"proprioception is {state.shape}, not [{frames + 1}, S]", "shape")
    return None


class Reward(Protocol):
    """Scores the samples of a group. A sample that cannot be scored is `Failed`, never 0."""

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        ...


@dataclass(frozen=True)
class RewardContext:
    """The scorer's device and student, for rewards whose class has `from_context(config, context)`.

    Attributes:
        device: device for models.
        student: the current judge; None if the reward uses no student.
    """

    device: torch.device
    student: Student | None = None
