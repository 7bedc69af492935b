"""Three baseline judges, to which the figures of a judge are compared.

They are: the pixel distance to the reference, the mean label for every video, and a student without the instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roboalign_ray.judge.rubric import maxima

if TYPE_CHECKING:  # the pixel and constant baselines need no torch
    from roboalign_ray.judge.student.model import Student, StudentScores

NO_INSTRUCTION = "do something"


def pixel_l1_scores(videos: Sequence[np.ndarray], references: Sequence[np.ndarray | None]) -> np.ndarray:
    """(1 - mean absolute pixel difference) of every dimension's maximum: float64 [B, 6].

    NaN if there is no reference or it has another size; both are cut to the shorter length.

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
    """Gives every video the mean of its training labels.

    Args:
        labels: float [N, 6], rubric points.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.mean = np.asarray(labels, np.float64).mean(axis=0)

    def scores(self, videos: Sequence[Any]) -> np.ndarray:
        """float64 [B, 6]."""
        return np.tile(self.mean, (len(videos), 1))


def others_instructions(instructions: Sequence[str]) -> list[str]:
    """For each item of a batch, another item's instruction; a student trained on these learns to ignore instructions.

    With a constant instruction, normalisation over the batch would have no spread, and its statistics would be useless
    afterwards.
    """
    return [*instructions[1:], *instructions[:1]]


class TextBlindStudent:
    """A student that always gets the same instruction.

    Args:
        student: preferably trained with `others_instructions`; a student trained with correct instructions shows how
            much it depends on them.
    """

    def __init__(self, student: Student) -> None:
        self.student = student

    def score(
        self, videos: Sequence[np.ndarray], instructions: Sequence[str], *, batch: int = 32
    ) -> StudentScores:
        """As `Student.score`, but the instructions are ignored."""
        return self.student.score(videos, [NO_INSTRUCTION] * len(instructions), batch=batch)
