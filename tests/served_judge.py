"""The served judge without Ray: web server, front and one replica's object in this process, and raw requests to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.actors.judge_front import JudgeFront
from roboalign_ray.config import JobConfig, ServingConfig, StudentConfig
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.serve.web_server import HttpLimits, WebServer

HOST = "127.0.0.1"
SIZES = {"height": 16, "width": 16, "frames": 3, "hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
TEXT = {"text_hidden": 8, "text_layers": 1, "text_heads": 2, "text_ffn": 8, "fusion_layers": 1}


def small_student(place: Path, version: int = 3) -> Path:
    """An untrained student whose scores differ between videos."""
    torch.manual_seed(0)
    student = Student(StudentConfig.small(**SIZES, **TEXT))
    torch.nn.init.normal_(student.head.weight, std=0.05)
    student.version = version
    student.save(place)
    return place


def film(seed: int, frames: int = 6, side: int = 16) -> bytes:
    generator = np.random.default_rng(seed)
    return encode_video(generator.integers(0, 256, (frames, side, side, 3), dtype=np.uint8), 5.0)


def replica(folder: Path, **serving: Any) -> Any:
    """A replica's object, as Ray would hold it."""
    from roboalign_ray.actors.judge_service import JudgeService

    return JudgeService("student", JobConfig(serving=ServingConfig(**serving)), folder)


@contextmanager
def front(
    judge: Any, hosts: tuple[str, ...] = (), token: str = "", headers_s: float = 30.0, **serving: Any
) -> Iterator[int]:
    """The front before anything with `judge` and `who`; gives its port."""
    config = ServingConfig(headers_s=headers_s, **serving)
    app = JudgeFront(judge.judge, judge.identity, config, hosts, token)

    async def nothing() -> None:
        """No warming up."""

    limits = HttpLimits(
        headers_s, config.timeout_s, config.largest_headers_kb * 1000, config.most_connections
    )
    web = WebServer(HOST, 0)
    port = web._socket.getsockname()[1]
    web.start(app, app.refusal, limits, app.watched, nothing, 10.0)
    try:
        yield port
    finally:
        web.stop()


def request(
    body: bytes = b"",
    *headers: str,
    method: str = "POST",
    path: str = "/score?instruction=open+it",
    **own: str,
) -> bytes:
    """A whole request's bytes; its Host, Content-Type and Content-Length may be given by `own`."""
    told = {"host": HOST, "content_type": "video/mp4", "content_length": str(len(body))} | own
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in told.items() if value != ""]
    return "\r\n".join([*lines, *headers, "connection: close", "", ""]).encode("latin-1") + body


def exchange(port: int, data: bytes, *, ends: bool = True, timeout: float = 20.0) -> bytes:
    """Send bytes, read until the server closes; what came."""
    answer = b""
    with socket.create_connection((HOST, port), timeout) as link:
        try:
            link.sendall(data)
            if ends:
                link.shutdown(socket.SHUT_WR)
            while part := link.recv(65536):
                answer += part
        except OSError:  # closed in the middle
            pass
    return answer


def status(answer: bytes) -> int:
    """Of an HTTP answer; 0 where there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
