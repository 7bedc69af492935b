"""One replica of the served judge: it reads bodies, judges waiting videos in batches, and reports errors in one line.

body ──► read in a thread, pixels in flight bounded ──► waiting videos judged together ─► status, JSON
         400, 422                                       500, 502
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from roboalign_ray.actors.serve_ports import keep_serve_port_on_loopback
from roboalign_ray.actors.served_judge import JudgeKind, open_served_judge
from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.pixel_budget import PixelBudget, PixelsBusyError
from roboalign_ray.foundation.failures import Failed, UserError, first_line
from roboalign_ray.judge.protocol import BROKEN, Judgement, JudgeRequest
from roboalign_ray.judge.serving.http import (
    answer_json,
    read_question,
    status_of,
)

Outcome = Judgement | Failed
_READERS = 2  # videos decoded at the same time: one ahead of the judge, and one more


@dataclass(frozen=True)
class WaitingVideo:
    """A video that waits for the judge.

    Attributes:
        question: the video and its instruction.
        answer: a future of `loop`; it is done if the request no longer waits.
    """

    question: JudgeRequest
    answer: asyncio.Future[Outcome]
    loop: asyncio.AbstractEventLoop

    def set_outcome(self, outcome: Outcome) -> None:
        """Set the answer. May be called from any thread."""

        def set_answer() -> None:
            if not self.answer.done():
                self.answer.set_result(outcome)

        with suppress(RuntimeError):  # the loop has ended with the replica
            self.loop.call_soon_threadsafe(set_answer)


class JudgeService:
    """The judge with its model, which is loaded once.

    Args:
        judge: which judge to serve.
        config: the `serving` section and the teacher's section are used.
        student: folder of the student.
        threads: torch threads.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, judge: JudgeKind, config: JobConfig, student: Path | None, threads: int = 1) -> None:
        keep_serve_port_on_loopback()
        self._serving = config.serving
        self._judge = open_served_judge(judge, config, student, threads)
        self._failed_in_a_row = 0
        self._pixels = PixelBudget(config.serving.pixels_in_flight)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._waiting: SimpleQueue[WaitingVideo] = SimpleQueue()
        threading.Thread(target=self._judge_waiting, name="judge", daemon=True).start()

    async def judge(
        self, body: bytes, content_type: str, instruction: str | None
    ) -> tuple[int, dict[str, Any]]:
        """Judge the video in a request's body.

        Args:
            body: JSON, or a video file.
            content_type: media type of the body.
            instruction: instruction from the URL, for a video file.

        Returns:
            the HTTP status and the JSON answer.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()
        with ExitStack() as held:

            def lease(pixels: int) -> None:
                held.enter_context(self._pixels.lease(pixels, wait_s=self._serving.timeout_s))

            def read() -> None:
                # The question goes to the judge directly, not through the event loop: under load, that would cost a
                # millisecond.
                question = read_question(body, content_type, instruction, self._serving, lease)
                self._waiting.put(WaitingVideo(question, answer, loop))

            try:
                await loop.run_in_executor(self._readers, read)
            except PixelsBusyError as error:
                return 503, {"error": error.line()}
            except UserError as error:
                return 400, {"error": error.line()}
            outcome = await answer
        if isinstance(outcome, Failed):
            return status_of(outcome), {"error": outcome.reason}
        return 200, answer_json(self._judge, outcome)

    async def identity(self) -> dict[str, Any]:
        """The judge of this replica."""
        return {"judge": self._judge.name, "version": self._judge.version}

    async def check_health(self) -> None:
        """Called by Serve regularly.

        Raises:
            RuntimeError: several batches in a row failed; Serve then replaces this replica.
        """
        if self._failed_in_a_row >= self._serving.failures_in_a_row:
            raise RuntimeError(f"the last {self._failed_in_a_row} batches failed inside the judge")

    # --- in a separate thread ----------------------------------------------------------------------------------------

    def _judge_waiting(self) -> None:
        """Judge all waiting videos as one batch, again and again, as long as the process runs."""
        while True:
            taken = [self._waiting.get()]
            while len(taken) < self._serving.batch and not self._waiting.empty():
                taken.append(self._waiting.get())
            wanted = [video for video in taken if not video.answer.done()]
            outcomes = self._judged([video.question for video in wanted])
            for video, outcome in zip(wanted, outcomes, strict=True):
                video.set_outcome(outcome)

    def _judged(self, questions: list[JudgeRequest]) -> list[Outcome]:
        """One outcome per question."""
        if not questions:
            return []
        try:
            outcomes = self._judge.judge(questions)
        except Exception as error:
            failed = Failed(f"{type(error).__name__}: {first_line(error)}", BROKEN)
            outcomes = [failed for _ in questions]
        broken = all(isinstance(outcome, Failed) and outcome.kind == BROKEN for outcome in outcomes)
        self._failed_in_a_row = self._failed_in_a_row + 1 if broken else 0
        return outcomes
