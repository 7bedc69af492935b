"""The rollout interface: what any world model is asked for, and what it answers.

A rollout is G samples from one prompt. It holds what was generated in the model's own terms (tokens, latents) and the
weight versions that made it, a few kilobytes; pixels are decoded where they are needed (`WorldModel.decode`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from roboalign_ray.foundation.failures import Failed


@dataclass(frozen=True)
class Prompt:
    """Where a rollout starts and what it is asked to do.

    Attributes:
        prompt_id: names the window; unique in a job.
        context: uint8 [H, W, 3], the frame the context tokens are made of.
        start: uint8 [H, W, 3], frame 0; becomes dyn_0. May equal `context`.
        actions: bins int64 [T, A]; actions[t] leads from frame t to frame t+1.
        instruction: the sentence, for rewards that read it.
        past: uint8 [m, H, W, 3], known frames right before `start`, oldest first; or None.
        past_actions: bins int64 [m, A]; past_actions[i] leads from past[i] to the frame after it. None without `past`.
    """

    prompt_id: str
    context: np.ndarray
    start: np.ndarray
    actions: np.ndarray
    instruction: str = ""
    past: np.ndarray | None = None
    past_actions: np.ndarray | None = None

    @property
    def horizon(self) -> int:
        """Frames to predict."""
        return len(self.actions)

    @property
    def given(self) -> int:
        """Known frames that become dynamics tokens: the start frame and those of `past`."""
        return 1 if self.past is None else 1 + len(self.past)


class Segment(Protocol):
    """What the parts of a payload tell of themselves: what was generated between two context refreshes."""

    @property
    def frames(self) -> int:
        """Generated frames."""
        ...

    @property
    def version(self) -> int:
        """Weight version that generated them."""
        ...


class Payload(Protocol):
    """What one kind of world model generated, in its own terms. Validates itself on construction."""

    kind: ClassVar[str]

    @property
    def segments(self) -> Sequence[Segment]:
        """In order of time; never empty."""
        ...

    @property
    def samples(self) -> int:
        """G."""
        ...

    @property
    def units(self) -> int:
        """How much was generated for all samples, in the model's own units: tokens, or denoised frames."""
        ...

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON types, arrays by name): what a file holds of it."""
        ...

    @classmethod
    def from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """Inverse of `to_arrays`, bit for bit.

        Raises:
            ValueError, LookupError, TypeError: these are not the arrays of such a payload.
        """
        ...


@dataclass(frozen=True)
class RolloutCost:
    """What a rollout cost.

    Attributes:
        seconds_per_frame: float [T], wall time of each frame of the batch that the rollout was in.
        peak_sequence: tokens of the longest sequence that a frame was generated from.
        cache_bytes: most bytes of intermediate results (keys and values, history) held for this rollout at once.
    """

    seconds_per_frame: np.ndarray
    peak_sequence: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True)
class Rollout:
    """G samples of one prompt.

    Attributes:
        prompt_id, instruction: of the prompt.
        seeds: G sampling seeds; the same seed gives the same sample whatever else is in the batch.
        payload: what was generated, in the terms of the world model.
        cost: time and memory.
        start: frames that were generated before the first one of this rollout: more than 0 behind a branch.

    Raises:
        ValueError: on construction, where seeds and samples differ in number.
    """

    prompt_id: str
    instruction: str
    seeds: tuple[int, ...]
    payload: Payload
    cost: RolloutCost
    start: int = 0

    def __post_init__(self) -> None:
        if len(self.seeds) != self.payload.samples:
            raise ValueError(f"{self.prompt_id}: {len(self.seeds)} seeds, {self.payload.samples} samples")

    @property
    def versions(self) -> tuple[int, ...]:
        """Weight version per segment."""
        return tuple(segment.version for segment in self.payload.segments)

    @property
    def horizon(self) -> int:
        """Generated frames T."""
        return sum(segment.frames for segment in self.payload.segments)


@dataclass(frozen=True)
class RolloutReport:
    """Numbers of one batch of rollouts, for whoever asked for it.

    Attributes:
        failed: prompt id to why it has no rollout.
        units: generated, see `Payload.units`.
        seconds: wall time.
        peak_sequence: longest prompt of any frame, tokens.
        cache_bytes: most bytes of keys and values held for one group.
    """

    failed: dict[str, Failed]
    units: int
    seconds: float
    peak_sequence: int
    cache_bytes: int


class WorldModel(Protocol):
    """What rollout actors, environments and evaluation ask of a world model, whatever it is made of."""

    version: int

    def rollout(self, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> list[Rollout]:
        """One rollout per prompt, `len(seeds[i])` samples each."""
        ...

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, H, W, 3]."""
        ...
