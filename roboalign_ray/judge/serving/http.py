"""The data formats of the judge service: request bytes to a video and an instruction, and scores to JSON.

    {"video": "<base64>", "instruction": "open the drawer"}     application/json
    the file itself, ?instruction=open+the+drawer               video/* or application/octet-stream

Independent of Ray and of the web framework.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from roboalign_ray.config import ServingConfig
from roboalign_ray.episodes.video_frames import video_size
from roboalign_ray.foundation.failures import Failed, UserError, first_line
from roboalign_ray.judge.protocol import (
    BROKEN,
    Judgement,
    JudgeRequest,
    TeacherJudge,
    read_request,
)
from roboalign_ray.judge.student.judge import seen_in
from roboalign_ray.judge.student.training_range import TrainingRange

VIDEO, INSTRUCTION = "video", "instruction"
LONGEST_INSTRUCTION = 2000  # characters
_JSON = "application/json"
_MOST_JSON_PARTS = 10_000  # limit on objects, lists and members: enough for two keys, but not for a JSON bomb
_BAD_REQUEST, _NO_ANSWER, _BROKEN = 400, 502, 500


class ServedJudge(TeacherJudge, Protocol):
    """A judge that can be served: `StudentJudge` or `ServedTeacher`.

    Attributes:
        version: version of a student; None for a teacher, whose name identifies its weights.
    """

    version: int | None


class ServedTeacher:
    """A teacher as a served judge, under its name in labels.

    Args:
        name: name of the teacher.
        teacher: any object with a teacher's `judge` method.
        training_range: range of its training clips, if known.
    """

    version: int | None = None

    def __init__(self, name: str, teacher: Any, training_range: TrainingRange | None = None) -> None:
        self.name, self._teacher, self._range = name, teacher, training_range

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """See `TeacherJudge`."""
        judged: list[Judgement | Failed] = self._teacher.judge(requests)
        return [self._one(*one) for one in zip(requests, judged, strict=True)]

    def _one(self, request: JudgeRequest, judgement: Judgement | Failed) -> Judgement | Failed:
        if isinstance(judgement, Failed):
            return judgement
        return replace(judgement, seen=seen_in(request, self._range))


def answer_json(judge: ServedJudge, judgement: Judgement) -> dict[str, Any]:
    """The service's JSON answer: the judgement, the judge and its version."""
    return judgement.as_json() | {"judge": judge.name, "version": judge.version}


def read_question(
    body: bytes,
    content_type: str,
    instruction: str | None,
    config: ServingConfig,
    lease: Callable[[int], object] = lambda pixels: None,
) -> JudgeRequest:
    """Read a video and an instruction from a request's body.

    Args:
        body: JSON, or a video file.
        content_type: media type of the body.
        instruction: instruction from the URL, for a video file.
        config: limits on the size of a video.
        lease: called before decoding, with the total number of pixels of all frames.

    Raises:
        UserError: the video or the instruction is missing or cannot be used.
        PixelsBusyError: `lease` has no room for the video.
    """
    if check_content_type(content_type) == _JSON:
        video, instruction = _from_json(body, config)
    else:
        video = body
    instruction = instruction or ""
    _check_instruction(instruction)
    try:
        pixels = video_size(video).pixels
        if pixels > config.largest_video_pixels:
            allowed = f"its frames hold more than the {config.largest_video_pixels} pixels allowed"
            raise UserError(allowed, where="video", remedy="send fewer or smaller frames")
        lease(pixels)
        return read_request(video, instruction, most_pixels=config.largest_video_pixels, budget=None)
    except UserError:
        raise
    except Exception as error:  # the file is external, so any decoder error is an error of the file
        raise UserError(
            f"video cannot be decoded ({type(error).__name__}: {first_line(error)})", where="video"
        ) from error


def check_content_type(content_type: str) -> str:
    """The media type, in lower case and without its parameters.

    Raises:
        UserError: bodies of this type are not supported.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _JSON or kind.startswith("video/") or kind == "application/octet-stream":
        return kind
    raise UserError(
        f"content type '{kind[:100]}' is not understood",
        where="request",
        remedy="send application/json, or the file itself as video/mp4",
    )


def status_of(failed: Failed) -> int:
    """The HTTP status for a video without a score: a client or a server error."""
    return {"input": _BAD_REQUEST, BROKEN: _BROKEN}.get(failed.kind, _NO_ANSWER)


def _from_json(body: bytes, config: ServingConfig) -> tuple[bytes, str]:
    if sum(body.count(sign) for sign in (b"{", b"[", b",")) > _MOST_JSON_PARTS:
        raise UserError(
            "JSON of too many parts", where="request", remedy=f'send "{VIDEO}" and "{INSTRUCTION}"'
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({type(error).__name__})", where="request") from error
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where="request", remedy=f'send "{VIDEO}" and "{INSTRUCTION}"')
    for key in (VIDEO, INSTRUCTION):
        if not isinstance(content.get(key), str):
            raise UserError(f'"{key}" is missing or not a string', where="request")
    for key in content:
        if key not in (VIDEO, INSTRUCTION):
            raise UserError(
                f"unknown key {json.dumps(key[:100])}", where="request", remedy=f"{VIDEO} and {INSTRUCTION}"
            )
    if len(content[VIDEO]) * 3 / 4 > config.largest_body_mb * 1e6:
        raise UserError(f'"{VIDEO}" is larger than {config.largest_body_mb:g} MB', where="request")
    try:
        return base64.b64decode(content[VIDEO], validate=True), content[INSTRUCTION]
    except (binascii.Error, ValueError) as error:
        raise UserError(f'"{VIDEO}" is not base64', where="request") from error


def _check_instruction(instruction: str) -> None:
    if len(instruction) > LONGEST_INSTRUCTION:
        raise UserError(
            f"the instruction has {len(instruction)} characters",
            where="request",
            remedy=f"send at most {LONGEST_INSTRUCTION}",
        )
    try:
        instruction.encode()
    except UnicodeEncodeError:
        raise UserError("the instruction holds half of a character pair", where="request") from None
