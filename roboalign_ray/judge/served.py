"""A judge behind a web service: from a request's bytes to a video and an instruction, and from scores to JSON.

    {"video": "<base64>", "instruction": "open the drawer"}     application/json
    the file itself, ?instruction=open+the+drawer               video/* or application/octet-stream

Knows neither Ray nor a web framework.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from roboalign_ray.config import ServingConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.rubric import names
from roboalign_ray.judge.student import Student
from roboalign_ray.judge.teacher.protocol import (
    BROKEN,
    JudgeRequest,
    TeacherJudgement,
    judge_each,
    read_request,
)

VIDEO, INSTRUCTION = "video", "instruction"
_BAD_REQUEST, _NO_ANSWER, _BROKEN = 400, 502, 500


@dataclass(frozen=True)
class ServedJudgement:
    """What a served judge says of one video.

    Attributes:
        scores, std: float64 [6], rubric points: the mean, and how sure the judge is (the student's own uncertainty, or
            the deviation between a teacher's answers).
        rationale: why; None from a student, which gives no reasons.
        judge: "student", or a teacher's name.
        version: the student's number; None for a teacher, whose name says which weights it has.
    """

    scores: np.ndarray
    std: np.ndarray
    rationale: str | None
    judge: str
    version: int | None

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "scores": dict(zip(names(), map(float, self.scores), strict=True)),
            "std": dict(zip(names(), map(float, self.std), strict=True)),
            "total": float(self.scores.sum()),
            "rationale": self.rationale,
            "judge": self.judge,
            "version": self.version,
        }


class ServedJudge(Protocol):
    """Scores several videos at once.

    Attributes:
        name: "student", or a teacher's name.
        version: of a student.
    """

    name: str
    version: int | None

    def judge(self, requests: Sequence[JudgeRequest]) -> list[ServedJudgement | Failed]:
        """One outcome per request, in order; what is wrong with one costs the others nothing."""
        ...


class ServedStudent:
    """A student; `version` is its own."""

    name = "student"
    version: int | None

    def __init__(self, student: Student) -> None:
        self._student, self.version = student, student.version

    def judge(self, requests: Sequence[JudgeRequest]) -> list[ServedJudgement | Failed]:
        """See `ServedJudge`."""
        return judge_each(requests, self._judged)

    def _judged(self, requests: Sequence[JudgeRequest]) -> list[ServedJudgement | Failed]:
        said = self._student.score(
            [request.frames for request in requests], [request.instruction for request in requests]
        )
        return [self._one(scores, std) for scores, std in zip(said.scores, said.std, strict=True)]

    def _one(self, scores: np.ndarray, std: np.ndarray) -> ServedJudgement | Failed:
        if not (np.isfinite(scores).all() and np.isfinite(std).all()):
            return Failed("the student gives no number for this video", "nan")
        return ServedJudgement(scores, std, None, self.name, self.version)


class ServedTeacher:
    """A teacher, under the name that stands in its labels.

    Args:
        name: the teacher's.
        teacher: whoever has its `judge`.
    """

    version: int | None = None

    def __init__(self, name: str, teacher: Any) -> None:
        self.name, self._teacher = name, teacher

    def judge(self, requests: Sequence[JudgeRequest]) -> list[ServedJudgement | Failed]:
        """See `ServedJudge`."""
        said: list[TeacherJudgement | Failed] = self._teacher.judge(requests)
        return [self._one(outcome) for outcome in said]

    def _one(self, said: TeacherJudgement | Failed) -> ServedJudgement | Failed:
        if isinstance(said, Failed):
            return said
        return ServedJudgement(said.scores, said.std, said.rationale, self.name, self.version)


def read_question(
    body: bytes, content_type: str, query: Mapping[str, str], config: ServingConfig
) -> JudgeRequest:
    """A request's body as a video and an instruction.

    Args:
        body: JSON, or a video file.
        content_type: says which of them it is.
        query: the address's parameters; a video file's instruction stands there.
        config: how large a video may be.

    Raises:
        UserError: no video or no instruction in it, or they cannot be used.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        video, instruction = _from_json(body)
    elif kind.startswith("video/") or kind == "application/octet-stream":
        video, instruction = body, query.get(INSTRUCTION, "")
    else:
        raise UserError(
            f"content type '{kind}' is not understood",
            where="request",
            remedy="send application/json, or the file itself as video/mp4",
        )
    return read_request(video, instruction, most_pixels=config.largest_video_pixels)


def status_of(failed: Failed) -> int:
    """The HTTP status of a video that got no score: whose fault it was."""
    return {"input": _BAD_REQUEST, BROKEN: _BROKEN}.get(failed.kind, _NO_ANSWER)


def _from_json(body: bytes) -> tuple[bytes, str]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({type(error).__name__})", where="request") from error
    if not isinstance(told, dict):
        raise UserError("not a JSON object", where="request", remedy=f'send "{VIDEO}" and "{INSTRUCTION}"')
    for key in (VIDEO, INSTRUCTION):
        if not isinstance(told.get(key), str):
            raise UserError(f'"{key}" is missing or not a string', where="request")
    for key in told:
        if key not in (VIDEO, INSTRUCTION):
            raise UserError(f'unknown key "{key}"', where="request", remedy=f"{VIDEO} and {INSTRUCTION}")
    try:
        return base64.b64decode(told[VIDEO], validate=True), told[INSTRUCTION]
    except (binascii.Error, ValueError) as error:
        raise UserError(f'"{VIDEO}" is not base64', where="request") from error
