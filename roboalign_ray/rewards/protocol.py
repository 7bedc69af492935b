"""What a reward is: frames in, one score or one failure per sample out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from roboalign_ray.foundation.failures import Failed


@dataclass(frozen=True)
class Scored:
    """One sample's reward.

    Attributes:
        total: what the objective maximises.
        components: named parts, for curves and tables.
        version: of the scorer that gave it.
        per_frame: float64 [T], what each frame adds to the total; None where the reward judges clips as a whole.
    """

    total: float
    components: Mapping[str, float] = field(default_factory=dict)
    version: int = 0
    per_frame: np.ndarray | None = field(default=None, compare=False)


Score = Scored | Failed


@dataclass(frozen=True)
class RewardInput:
    """What a reward may look at.

    Attributes:
        instruction: the sentence.
        start: uint8 [H, W, 3], frame 0.
        generated: uint8 [G, T, H, W, 3].
        real: uint8 [T, H, W, 3], the real continuation, where there is one.
    """

    instruction: str
    start: np.ndarray
    generated: np.ndarray
    real: np.ndarray | None = None


class Reward(Protocol):
    """Scores the samples of a group. A sample that cannot be scored is `Failed`, never 0."""

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        ...
