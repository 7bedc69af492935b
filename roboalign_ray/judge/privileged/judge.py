"""The privileged teacher with the common interface of teachers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.config.bench import PrivilegedConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.privileged.measure import PrivilegedTeacher
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, input_failure
from roboalign_ray.judge.rubric import DIMENSIONS


class PrivilegedJudge:
    """Compares each video with the reference of its request; a request without a reference fails.

    Attributes:
        name: "privileged".
    """

    name = "privileged"

    def __init__(self, config: PrivilegedConfig | None = None) -> None:
        self._teacher = PrivilegedTeacher(config)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request. Measurements are deterministic, so there is one answer and the deviation is 0."""
        return [self._judged(request) for request in requests]

    def _judged(self, request: JudgeRequest) -> Judgement | Failed:
        if failure := input_failure(request):
            return failure
        if request.reference is None:
            return Failed(f"{request.name}: no real continuation to measure against", "unmeasured")
        try:
            score = self._teacher.score(request.frames, request.reference)
        except UserError as error:
            return Failed(error.line(), "input")
        points = score.scores()
        if isinstance(points, Failed):
            return points
        shares = ", ".join(f"{name} {share:.2f}" for name, share in score.measurements.items())
        scores = points.astype(np.float64)
        return Judgement(scores, np.zeros(len(DIMENSIONS)), scores[None], f"Measured shares: {shares}.")
