"""A teacher's server that drips, breaks off, floods or redirects: always a Failed value or one line, always in time."""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.protocol import JudgeRequest
from roboalign_ray.judge.teacher.http_call import LARGEST_REPLY, ServerError, call_json
from roboalign_ray.judge.teacher.parsing import parse_answer
from roboalign_ray.judge.teacher.server_backend import ServerTeacher

MODELS = b'{"data": [{"id": "small"}]}'


def reply(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def sends(data: bytes) -> Callable[[socket.socket], None]:
    return lambda link: link.sendall(data)


def drips(start: bytes, part: bytes) -> Callable[[socket.socket], None]:
    """A part every 50 ms, for as long as it is read."""

    def answer(link: socket.socket) -> None:
        link.sendall(start)
        while True:
            link.sendall(part)
            time.sleep(0.05)

    return answer


def floods(start: bytes, part: bytes) -> Callable[[socket.socket], None]:
    def answer(link: socket.socket) -> None:
        link.sendall(start)
        while True:
            link.sendall(part)

    return answer


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answers what is posted with `answer`, and the question for its models as it should."""
    listening = socket.create_server(("127.0.0.1", 0))

    def one(link: socket.socket) -> None:
        with link, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += link.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                link.sendall(reply(MODELS))
                return
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < length:
                body += link.recv(65536)
            answer(link)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        listening.close()


def config(url: str, **server: Any) -> TeacherConfig:
    section = {"url": url, "model": "small", "backoff_s": 0.01, "deadline_s": 1.0, "retries": 1} | server
    return TeacherConfig.model_validate({"backend": "openai", "samples": 1, "frames": 4, "server": section})


GZIP = zlib.compressobj(wbits=31)
BOMB = GZIP.compress(bytes(50_000_000)) + GZIP.flush()
HOSTILE = {
    "drips its body": (drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "), "no answer"),
    "drips its headers": (drips(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n"), ""),
    "drips one header": (drips(b"HTTP/1.1 200 OK\r\nX-A: ", b"1"), ""),
    "says nothing": (lambda link: time.sleep(30), "no answer"),
    "never ends its headers": (floods(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 1000), ""),
    "never ends one header": (floods(b"HTTP/1.1 200 OK\r\nX-A: ", b"1" * 65536), ""),
    "breaks off": (sends(reply(b'{"choices": [', length=500)), "ClientPayloadError"),
    "tells a length that is none": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}"), ""),
    "tells a negative length": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"), ""),
    "breaks a chunk off": (sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"), ""),
    "closes at once": (lambda link: None, "ServerDisconnectedError"),
    "is no web server": (sends(b"SSH-2.0-OpenSSH_9\r\n\r\n"), ""),
    "redirects": (sends(reply(b"", "Location: http://127.0.0.1:9/", status="302 Found")), "redirects"),
    "compresses a bomb": (sends(reply(BOMB, "Content-Encoding: gzip")), "compressed"),
    "is endless": (floods(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b" " * 65536), "larger"),
    "is not JSON": (sends(reply(b"<html>")), "not JSON"),
    "is not text": (sends(reply(b"\xff\xfe\x00")), "not JSON"),
    "nests too deep": (sends(reply(b"[" * 200_000)), "not JSON"),
    "is a list": (sends(reply(b"[]")), "not a JSON object"),
    "has no choices": (sends(reply(b'{"choices": 3}')), "no choices"),
    "has choices of another kind": (
        sends(reply(b'{"choices": [{"message": {"content": [1]}}]}')),
        "no choices",
    ),
    "says an error with a terminal's codes": (
        sends(reply(b'{"error": {"message": "\\u001b[2Jgone\\nmore"}}', status="400 Bad Request")),
        "400: ?[2Jgone",
    ),
    "nests an error too deep": (sends(reply(b"[" * 200_000, status="500 Oh")), "500"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=[name.replace(" ", "-") for name in HOSTILE])
def test_a_hostile_server_gives_one_failed_value_within_its_deadline(case: str) -> None:
    answer, line = HOSTILE[case]
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    with serving(answer) as url:
        teacher = ServerTeacher(config(url))
        began = time.monotonic()
        [outcome] = teacher.judge([JudgeRequest(frames, 5.0, "open the drawer")])
        took = time.monotonic() - began
    assert isinstance(outcome, Failed)
    assert outcome.kind == "server"
    assert line in outcome.reason
    assert outcome.reason.isprintable()
    assert len(outcome.reason) < 500
    assert took < 10  # ten times the deadline: a machine may be busy, a drip would go on for ever


def test_a_redirect_does_not_carry_the_key_to_another_host() -> None:
    seen = []
    with serving(lambda link: seen.append(link)) as other:
        moved = reply(b"", f"Location: {other}/chat/completions", status="307 Temporary Redirect")
        with serving(sends(moved)) as url, pytest.raises(ServerError, match="redirects") as raised:
            call_json(f"{url}/chat/completions", {}, {"Authorization": "Bearer secret"}, 5.0)
    assert not raised.value.may_pass
    assert seen == []


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/v1", "gopher", "http://[::1", "http://"]
)
def test_only_web_addresses_are_asked(url: str) -> None:
    with pytest.raises(UserError, match="no working server"):
        ServerTeacher(config(url))


def test_a_reply_just_below_the_limit_is_read() -> None:
    told = {"filler": "x" * (LARGEST_REPLY - 100)}
    with serving(sends(reply(json.dumps(told).encode()))) as url:
        assert call_json(f"{url}/chat/completions", {}, {}, 20.0) == told


@pytest.mark.parametrize("listed", [b'{"data": 3}', b'{"data": {"id": "large"}}', b'{"data": ["small"]}'])
def test_a_list_of_models_of_another_form_is_no_list(listed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_hostile_teacher_server.MODELS", listed)
    with serving(sends(reply(b"{}"))) as url:
        assert ServerTeacher(config(url)).model == "small"


def test_a_score_beyond_all_numbers_is_a_failed_answer() -> None:
    from roboalign_ray.judge.rubric import names

    scores = ", ".join(f'"{name}": 1{"0" * 400}' for name in names())
    assert parse_answer(f'{{{scores}, "rationale": "x"}}') == Failed(
        "a score is not a finite number", "parse"
    )
