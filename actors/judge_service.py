"""One replica of the served judge: reads requests, judges them in batches, and tells in a line what is wrong with one.

POST /score ──► read in a thread ──► gathered by serve.batch ──► judged in a thread ──► 200 scores
                  └── 400, 413         └── 503 after timeout_s      └── 500, 502
GET /health ──► who judges
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from roboalign_ray.config import JobConfig, ServingConfig
from roboalign_ray.foundation.failures import Failed, UserError, first_line
from roboalign_ray.judge.served import (
    ServedJudge,
    ServedJudgement,
    ServedStudent,
    ServedTeacher,
    read_question,
    status_of,
)
from roboalign_ray.judge.teacher.protocol import BROKEN, JudgeRequest

JudgeKind = Literal["student", "teacher"]
_MEGABYTE = 1_000_000


class JudgeService:
    """The judge, its model loaded once.

    Args:
        judge: who judges.
        config: its `serving` section; the teacher's.
        student: folder of the student.
        threads: torch threads.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, judge: JudgeKind, config: JobConfig, student: Path | None, threads: int = 1) -> None:
        self._serving = config.serving
        self._judge = _opened(judge, config, student, threads)
        self._failed_in_a_row = 0
        gathering: Any = self._together  # serve.batch gives it setters that its annotations do not know
        gathering.set_max_batch_size(config.serving.batch)
        gathering.set_batch_wait_timeout_s(config.serving.batch_wait_s)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one HTTP request."""
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        wanted = {"/score": "POST", "/health": "GET"}.get(path)
        if wanted is None:
            return _told(404, f"no '{path}' here; POST /score or GET /health")
        if request.method != wanted:
            return _told(405, f"{path} takes {wanted}", Allow=wanted)
        if path == "/health":
            return JSONResponse({"judge": self._judge.name, "version": self._judge.version})
        return await self._scored(request)

    async def check_health(self) -> None:
        """Asked by Serve from time to time.

        Raises:
            RuntimeError: batches fail one after the other; Serve then starts another replica in this one's place.
        """
        if self._failed_in_a_row >= self._serving.failures_in_a_row:
            raise RuntimeError(f"the last {self._failed_in_a_row} batches failed inside the judge")

    async def _scored(self, request: Request) -> JSONResponse:
        serving = self._serving
        try:
            body = await _body(request, serving)
            if body is None:
                return _told(413, f"the request is larger than {serving.largest_body_mb:g} MB")
            kind = request.headers.get("content-type", "")
            question = await asyncio.to_thread(read_question, body, kind, request.query_params, serving)
        except UserError as error:
            return _told(400, error.line())
        except ClientDisconnect:
            return _told(400, "the request ended before its body did")
        try:
            outcome = await asyncio.wait_for(self._together(question), serving.timeout_s)
        except TimeoutError:
            wait = str(serving.retry_after_s)
            return _told(503, f"no score within {serving.timeout_s:g} s", **{"Retry-After": wait})
        if isinstance(outcome, Failed):
            return _told(status_of(outcome), outcome.reason)
        return JSONResponse(outcome.as_json())

    @serve.batch
    async def _together(self, questions: list[JudgeRequest]) -> list[ServedJudgement | Failed]:
        return await self.judged(questions)

    async def judged(self, questions: list[JudgeRequest]) -> list[ServedJudgement | Failed]:
        """One outcome per question; what the judge does in the meantime stops nobody else."""
        try:
            outcomes = await asyncio.to_thread(self._judge.judge, questions)
        except Exception as error:
            failed = Failed(f"{type(error).__name__}: {first_line(error)}", BROKEN)
            outcomes = [failed for _ in questions]
        broken = all(isinstance(outcome, Failed) and outcome.kind == BROKEN for outcome in outcomes)
        self._failed_in_a_row = self._failed_in_a_row + 1 if broken else 0
        return outcomes


def _opened(judge: JudgeKind, config: JobConfig, student: Path | None, threads: int) -> ServedJudge:
    import torch

    if judge == "teacher":
        from actors.teacher import TeacherActor

        teacher = TeacherActor(config.teacher, threads)
        return ServedTeacher(teacher.ready(), teacher)
    from roboalign_ray.judge.student import Student

    torch.set_num_threads(threads)
    assert student is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ServedStudent(Student.load(student).to(device))


async def _body(request: Request, serving: ServingConfig) -> bytes | None:
    """The body; None where it is too large, of which no more is read than is allowed."""
    most, parts, size = serving.largest_body_mb * _MEGABYTE, [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _told(status: int, error: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)
