"""Three judges that know nothing, so that a figure of a real one means something.

Pixel distance to the reference, the mean label whatever the video, and a student that is not told the instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roboalign_ray.judge.rubric import maxima

if TYPE_CHECKING:  # pixel and constant judges need no torch
    from roboalign_ray.judge.student.model import Judgement, Student

NO_INSTRUCTION = "do something"


def pixel_l1_scores(videos: Sequence[np.ndarray], references: Sequence[np.ndarray | None]) -> np.ndarray:
    """(1 - mean absolute pixel difference) of every dimension's maximum: float64 [B, 6].

    NaN where there is no reference, or one of another size; lengths are cut to the shorter.

    Args:
        videos, references: uint8 [T, H, W, 3] each.
    """
    shares = [_closeness(video, reference) for video, reference in zip(videos, references, strict=True)]
    return np.asarray(shares)[:, None] * maxima()


def _closeness(video: np.ndarray, reference: np.ndarray | None) -> float:
    if reference is None or reference.shape[1:] != video.shape[1:]:
        return float("nan")
    length = min(len(video), len(reference))
    difference = np.abs(video[:length].astype(np.int16) - reference[:length].astype(np.int16))
    return 1.0 - float(difference.mean()) / 255


class ConstantJudge:
    """Gives every video the mean of the labels it was fitted on.

    Args:
        labels: float [N, 6], rubric points.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.mean = np.asarray(labels, np.float64).mean(axis=0)

    def scores(self, videos: Sequence[Any]) -> np.ndarray:
        """float64 [B, 6]."""
        return np.tile(self.mean, (len(videos), 1))


def others_instructions(instructions: Sequence[str]) -> list[str]:
    """For each of a batch another one's sentence, from which a student learns that sentences say nothing.

    Were it always the same sentence, there would be no spread to normalise by, and what is learned in batches would
    mean nothing afterwards.
    """
    return [*instructions[1:], *instructions[:1]]


class TextBlindStudent:
    """A student that hears the same sentence whatever was asked.

    Args:
        student: best one that was trained with `others_instructions`; one trained with its own shows how much it leans
            on them.
    """

    def __init__(self, student: Student) -> None:
        self.student = student

    def score(
        self, videos: Sequence[np.ndarray], instructions: Sequence[str], *, batch: int = 32
    ) -> Judgement:
        """As `Student.score`; the instructions are not looked at."""
        return self.student.score(videos, [NO_INSTRUCTION] * len(instructions), batch=batch)
