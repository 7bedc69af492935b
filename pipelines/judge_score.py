"""Judging a few videos at once: read them, ask the teacher, hand back what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.teacher.protocol import JudgeRequest, TeacherJudgement, check_request


def run_score(config: JobConfig, videos: Sequence[Path], instruction: str) -> list[TeacherJudgement | Failed]:
    """Judge videos against one instruction.

    vLLM's engine runs in an actor of `cluster.teacher`; the other backends in this process.

    Raises:
        UserError: a video cannot be read or is too short, the instruction is empty, or the teacher cannot be made.
    """
    requests = [read_request(path, instruction) for path in videos]
    if config.teacher.backend != "vllm":
        from roboalign_ray.judge.teacher.opening import open_teacher

        return open_teacher(config.teacher).judge(requests)
    from pipelines.judge_pool import teacher_pool
    from pipelines.runtime import start_ray

    with start_ray(config.cluster, worker_logs=False), teacher_pool(config) as pool:
        return pool.judge(requests)


def read_request(path: Path, instruction: str) -> JudgeRequest:
    """A video file as a request.

    Raises:
        UserError: it cannot be read, is too short, or the instruction is empty.
    """
    try:
        frames = decode_video(path)
    except EpisodeError as error:
        raise UserError(error.what, where=str(path)) from error
    request = JudgeRequest(frames, _rate(path), instruction, name=str(path))
    check_request(request)
    return request


def _rate(path: Path) -> float:
    """Frames per second as the file tells them.

    Raises:
        UserError: it tells none.
    """
    with av.open(str(path), "r") as container:
        rate = container.streams.video[0].average_rate
    if not rate:
        raise UserError("the video tells no frame rate", where=str(path), remedy="write it anew with one")
    return float(rate)
