"""The student behind the interface of all teachers, for tables that set them side by side."""

from __future__ import annotations

from collections.abc import Sequence

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.protocol import JudgeRequest, TeacherJudgement, input_failure
from roboalign_ray.judge.student.model import Student


class StudentJudge:
    """Scores videos with a student. It gives no reasons; its deviation is what its variance head says.

    Attributes:
        name: "student/v<version>".
    """

    def __init__(self, student: Student) -> None:
        self.student, self.name = student, f"student/v{student.version}"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[TeacherJudgement | Failed]:
        """One outcome per request, in order."""
        outcomes: list[TeacherJudgement | Failed | None] = [input_failure(request) for request in requests]
        sound = [request for request, failed in zip(requests, outcomes, strict=True) if failed is None]
        if sound:
            judged = self.student.score([r.frames for r in sound], [r.instruction for r in sound])
            given = iter(zip(judged.scores, judged.std, strict=True))
        return [outcome or _outcome(*next(given)) for outcome in outcomes]


def _outcome(scores, std) -> TeacherJudgement:
    return TeacherJudgement(scores, std, scores[None], "")
