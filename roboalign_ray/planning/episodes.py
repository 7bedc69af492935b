"""What an environment remembers of each sub-environment's episode."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from roboalign_ray.planning.scoring import ClipSoFar


@dataclass
class EpisodeSoFar:
    """One episode of a sub-environment. Arrays are never written to, so copies may share them.

    Attributes:
        instruction: the sentence.
        start: uint8 [V, H, W, 3], frame 0.
        frames: predicted ones, uint8 [V, H, W, 3] each; the last one alone where nothing reads the others.
        actions: those that led to these frames, float32 [A] each.
        steps: taken in the environment.
        score: of the clip so far, for rewards that judge clips.
        over: whether it has ended.
    """

    instruction: str
    start: np.ndarray
    frames: list[np.ndarray]
    actions: list[np.ndarray]
    steps: int = 0
    score: float = 0.0
    over: bool = False

    @classmethod
    def of(cls, clip: ClipSoFar) -> EpisodeSoFar:
        """A new episode that begins with a clip."""
        return cls(clip.instruction, clip.start, list(clip.frames), list(clip.actions))

    @property
    def last(self) -> np.ndarray:
        """Uint8 [V, H, W, 3], what is seen now."""
        return self.frames[-1] if self.frames else self.start

    def add(self, frame: np.ndarray, action: np.ndarray, *, whole: bool) -> None:
        """One step; `whole` keeps the frames before it."""
        if not whole:
            self.frames, self.actions = [], []
        self.frames.append(frame)
        self.actions.append(action)
        self.steps += 1

    def clip(self) -> ClipSoFar:
        """What was seen so far."""
        frames = np.stack(self.frames) if self.frames else np.empty((0, *self.start.shape), np.uint8)
        actions = np.stack(self.actions) if self.actions else np.empty((0, 0), np.float32)
        return ClipSoFar(self.instruction, self.start, frames, actions)

    def copied(self) -> EpisodeSoFar:
        """An episode that goes on by itself."""
        return replace(self, frames=list(self.frames), actions=list(self.actions))
