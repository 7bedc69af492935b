"""The student with the common interface of judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, judge_each
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.training_range import Seen, TrainingRange


class StudentJudge:
    """Scores videos with a student. It gives no reasons; its deviation is the uncertainty that it predicts.

    Args:
        student: the student.
        training_range: range of its training clips, if known.

    Attributes:
        name: "student".
        version: the student's version.
    """

    name = "student"
    version: int | None

    def __init__(self, student: Student, training_range: TrainingRange | None = None) -> None:
        self._student, self.version, self._range = student, student.version, training_range

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request, in order; a failed request does not affect the others."""
        return judge_each(requests, self._judged)

    def _judged(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        judged = self._student.score(
            [request.frames for request in requests], [request.instruction for request in requests]
        )
        return [self._one(*one) for one in zip(requests, judged.scores, judged.std, strict=True)]

    def _one(self, request: JudgeRequest, scores: np.ndarray, std: np.ndarray) -> Judgement | Failed:
        if not (np.isfinite(scores).all() and np.isfinite(std).all()):
            return Failed("the student gives no number for this video", "nan")
        return Judgement(scores, std, seen=seen_in(request, self._range))


def seen_in(request: JudgeRequest, training_range: TrainingRange | None) -> Seen | None:
    """How a request's clip compares with a judge's training clips; None if these are unknown."""
    return None if training_range is None else training_range.compare(request.frames, request.fps)
