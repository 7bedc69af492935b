"""The interface of all judges, and how several answers about one video become one judgement.

RoboAlign-R1 (arXiv 2605.03821) draws five answers at temperature 0.6 and reports mean ± std per dimension. An answer
that cannot be read is a failure with its reason: it is counted and left out, never taken for zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.pixel_budget import PIXELS, PixelBudget
from roboalign_ray.episodes.shaping import MOST_PIXELS
from roboalign_ray.episodes.video import decode_video, video_rate
from roboalign_ray.foundation.failures import Failed, UserError, first_line, raise_if_host
from roboalign_ray.judge.privileged.measure import Reference
from roboalign_ray.judge.rubric import DIMENSIONS, names
from roboalign_ray.judge.student.clips import LEAST_FRAMES
from roboalign_ray.judge.teacher.parsing import Answer, parse_answer

if TYPE_CHECKING:
    from roboalign_ray.judge.student.training_range import Seen

BROKEN = "teacher"  # kind of failure: an error inside the judge, not an answer that cannot be read
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class JudgeRequest:
    """One video to be judged.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        fps: frames per second.
        instruction: the sentence that it is judged against.
        reference: the real continuation and what is known of it; teachers that judge by eye ignore it.
        name: for messages.
    """

    frames: np.ndarray
    fps: float
    instruction: str
    reference: Reference | None = None
    name: str = "video"


@dataclass(frozen=True)
class Judgement:
    """The result of any judge for one video.

    Attributes:
        scores: float64 [6], rubric points; from a teacher, the mean over its readable answers.
        std: float64 [6], in points: the standard deviation over a teacher's readable answers (0 with one answer), or
            the uncertainty that a student predicts.
        samples: float64 [n, 6], a teacher's readable answers; empty from a student.
        rationale: the reasons, from the answer whose total is nearest to the mean's; None from a student.
        texts: all raw answers, including unreadable ones.
        failures: why answers were left out.
        seen: how the clip compares with the judge's training clips; None if these are unknown.
    """

    scores: np.ndarray
    std: np.ndarray
    samples: np.ndarray = field(default_factory=lambda: np.empty((0, len(DIMENSIONS))))
    rationale: str | None = None
    texts: tuple[str, ...] = ()
    failures: tuple[Failed, ...] = ()
    seen: Seen | None = None

    @property
    def total(self) -> float:
        """Sum of the scores, 0 to 10."""
        return float(self.scores.sum())

    def as_json(self) -> dict[str, Any]:
        """JSON types only, without the answers."""
        return {
            "scores": dict(zip(names(), map(float, self.scores), strict=True)),
            "std": dict(zip(names(), map(float, self.std), strict=True)),
            "total": self.total,
            "rationale": self.rationale,
            "training_range": None if self.seen is None else self.seen.as_json(),
        }


class TeacherJudge(Protocol):
    """Scores videos by the rubric.

    Attributes:
        name: the judge's name in labels.
    """

    name: str

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request, in order; a failed request does not affect the others."""
        ...


def check_request(request: JudgeRequest) -> None:
    """What no teacher can judge.

    Raises:
        UserError: frames that are not uint8 [T, H, W, 3], too few of them, no instruction, or no frame rate.
    """
    frames, where = request.frames, request.name
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise UserError(f"video is {frames.dtype} {frames.shape}, not uint8 [T, H, W, 3]", where=where)
    if len(frames) < LEAST_FRAMES:
        raise UserError(
            f"a video of {len(frames)} frame(s) cannot be judged",
            where=where,
            remedy=f"give at least {LEAST_FRAMES}",
        )
    if not request.instruction.strip():
        raise UserError(
            "the instruction is empty", where=where, remedy="a video is judged against a sentence"
        )
    if not (np.isfinite(request.fps) and request.fps > 0):
        raise UserError(f"fps is {request.fps}", where=where)


def read_request(
    video: bytes | Path,
    instruction: str,
    *,
    name: str = "video",
    most_pixels: int = MOST_PIXELS,
    budget: PixelBudget | None = PIXELS,
) -> JudgeRequest:
    """A video file, or its bytes, as a request.

    Args:
        video: a container and codec of `episodes.video_container`.
        instruction: the sentence that it is judged against.
        name: for messages.
        most_pixels: of all frames together.
        budget: of the process, that the pixels are leased from while decoding; None where the caller holds a lease.

    Raises:
        UserError: it cannot be read, is too short or too large, states no frame rate, or the instruction is empty.
    """
    try:
        frames = decode_video(video, most_pixels=most_pixels, budget=budget)
        rate = video_rate(video)
    except EpisodeError as error:
        raise UserError(error.what, where=name, remedy=error.remedy) from error
    request = JudgeRequest(frames, rate, instruction, name=name)
    check_request(request)
    return request


def input_failure(request: JudgeRequest) -> Failed | None:
    """`check_request` as a value."""
    try:
        check_request(request)
    except UserError as error:
        return Failed(error.line(), "input")
    return None


def judge_each(
    requests: Sequence[JudgeRequest],
    judged: Callable[[Sequence[JudgeRequest]], list[Outcome | Failed]],
    *,
    batch: int | None = None,
) -> list[Outcome | Failed]:
    """One outcome per request, in order, by a judge that takes several at once.

    Args:
        requests: what cannot be judged is Failed, of kind "input", and is not shown to the judge.
        judged: one outcome per request; where it raises, each of the batch is judged by itself.
        batch: most requests at once; None: all.
    """
    outcomes: list[Outcome | Failed | None] = [input_failure(request) for request in requests]
    sound = [number for number, failed in enumerate(outcomes) if failed is None]
    size = batch or max(1, len(sound))
    for first in range(0, len(sound), size):
        part = sound[first : first + size]
        together = _judge_together([requests[number] for number in part], judged)
        for number, outcome in zip(part, together, strict=True):
            outcomes[number] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _judge_together(
    requests: Sequence[JudgeRequest], judged: Callable[[Sequence[JudgeRequest]], list[Outcome | Failed]]
) -> list[Outcome | Failed]:
    try:
        return judged(requests)
    except Exception as error:
        if len(requests) > 1:
            return [outcome for request in requests for outcome in _judge_together([request], judged)]
        raise_if_host(error, where=requests[0].name)
        return [Failed(f"{requests[0].name}: {type(error).__name__}: {first_line(error)}", BROKEN)]


def judgement_of(texts: Sequence[str]) -> Judgement | Failed:
    """One judgement of a video's answers; Failed where none can be read."""
    parsed = [parse_answer(text) for text in texts]
    good = [answer for answer in parsed if isinstance(answer, Answer)]
    failures = tuple(answer for answer in parsed if isinstance(answer, Failed))
    if not good:
        reasons = list(dict.fromkeys(failure.reason for failure in failures)) or ["no answer"]
        return Failed(f"none of {len(parsed)} answers can be read: {'; '.join(reasons)}", "parse")
    samples = np.stack([answer.scores for answer in good])
    mean = samples.mean(axis=0)
    nearest = int(np.argmin(np.abs(samples.sum(axis=1) - mean.sum())))
    return Judgement(mean, samples.std(axis=0), samples, good[nearest].rationale, tuple(texts), failures)
