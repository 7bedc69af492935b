"""The HTTP side of the served judge over real connections: who may ask, what is refused, what slow clients hold."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from served_judge import HOST, exchange, film, front, replica, request, small_student, status

from roboalign_ray.actors.judge_front import LOOPBACK_NAMES, bearer_token
from roboalign_ray.config import ServingConfig
from roboalign_ray.foundation.failures import UserError


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return replica(small_student(tmp_path_factory.mktemp("front") / "student"))


@pytest.fixture(scope="module")
def port(judge: Any) -> Iterator[int]:
    """Open to loopback names, without a token; small bodies and headers."""
    with front(
        judge, LOOPBACK_NAMES, largest_body_mb=1, held_mb=4, burst=50, largest_video_pixels=10**6
    ) as found:
        yield found


class Held:
    """A judge that answers when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked = 0

    async def judge(self, body: bytes, kind: str, instruction: str | None) -> tuple[int, dict]:
        self.asked += 1
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        return 200, {"total": 1.0}

    async def identity(self) -> dict[str, Any]:
        return {"judge": "held", "version": None}


def told(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


# --- who may ask -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST", "localhost."])
def test_names_of_this_machine_are_answered(port: int, host: str) -> None:
    assert status(exchange(port, request(method="GET", path="/health", host=host))) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[", ""]
)
def test_a_name_that_points_here_from_elsewhere_is_refused(port: int, host: str) -> None:
    answer = exchange(port, request(film(0), host=host))
    assert status(answer) == 400
    assert b"localhost" not in answer.partition(b"\r\n\r\n")[2]


def test_two_hosts_are_none(port: int) -> None:
    assert status(exchange(port, request(film(0), "Host: localhost"))) == 400


def test_a_token_is_asked_for_and_compared(judge: Any) -> None:
    with front(judge, token="s3cret") as port:
        for header in (
            [],
            ["Authorization: Bearer wrong"],
            ["Authorization: Basic s3cret"],
            ["Authorization: s3cret"],
        ):
            answer = exchange(port, request(film(0), *header))
            assert status(answer) == 401
            assert b"www-authenticate: Bearer" in answer
        assert status(exchange(port, request(method="GET", path="/health"))) == 401
        assert status(exchange(port, request(method="GET", path="/-/healthz"))) == 200  # for probes
        for scheme in ("Bearer", "bearer"):
            assert status(exchange(port, request(film(0), f"Authorization: {scheme} s3cret"))) == 200


def test_a_token_comes_from_the_environment_and_must_fit_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = ServingConfig(token_env="TOKEN_OF_THIS_TEST")
    assert bearer_token(serving) == ""
    monkeypatch.setenv("TOKEN_OF_THIS_TEST", "abc")
    assert bearer_token(serving) == "abc"
    for bad in ("a b", "a\n", "\u00fc", " "):
        monkeypatch.setenv("TOKEN_OF_THIS_TEST", bad)
        with pytest.raises(UserError, match="TOKEN_OF_THIS_TEST"):
            bearer_token(serving)


# --- what a request may be ---------------------------------------------------------------------------------------

VIDEO = film(0)
TEXT = base64.b64encode(VIDEO).decode()


def as_json(body: bytes, **own: str) -> bytes:
    return request(body, path="/score", content_type="application/json", **own)


BAD = {
    "deep JSON": (as_json(b'{"video": ' + b"[" * 100_000), 400),
    "wide JSON": (as_json(b'{"video": [' + b"{}," * 200_000), 400),
    "half a character": (as_json(json.dumps({"video": TEXT, "instruction": "\ud800"}).encode()), 400),
    "a long instruction": (as_json(json.dumps({"video": TEXT, "instruction": "a" * 3000}).encode()), 400),
    "UTF-16 of nothing": (as_json(b"\xff\xfe\x00"), 400),
    "a number without end": (as_json(b'{"video": ' + b"9" * 10_000 + b"}"), 400),
    "a key of control characters": (as_json(b'{"video": "", "instruction": "", "\\u001b[2J": 1}'), 400),
    "no body": (request(), 400),
    "a long query": (request(VIDEO, path="/score?instruction=" + "a" * 3000), 400),
    "a compressed body": (request(VIDEO, "Content-Encoding: gzip"), 415),
    "multipart": (request(b"--x--", content_type="multipart/form-data; boundary=x"), 400),
    "too large by its length": (request(b"x", content_length="2000000"), 413),
    "too large by its bytes": (request(bytes(1_000_001)), 413),
    "too large in chunks": (
        request(
            b"1e8480\r\n" + bytes(2_000_000) + b"\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked",
            content_length="",
        ),
        413,
    ),
    "two lengths": (request(VIDEO, "Content-Length: 3"), 400),
    "a length and chunks": (request(VIDEO, "Transfer-Encoding: chunked"), 400),
    "a length that is none": (request(VIDEO, content_length="1x"), 400),
    "a negative length": (request(VIDEO, content_length="-1"), 400),
    "a chunk that is none": (request(b"zz\r\n", "Transfer-Encoding: chunked", content_length=""), 400),
    "large headers": (request(VIDEO, *(f"X-{n}: {'a' * 1000}" for n in range(100))), 431),
    "a large header": (request(VIDEO, "X: " + "a" * 300_000), 431),
    "another path": (request(VIDEO, path="/scores"), 404),
    "a path above": (request(VIDEO, path="/../etc/passwd"), 404),
    "a whole URL": (request(VIDEO, path="http://evil.example/score"), 400),
    "another method": (request(VIDEO, method="PUT"), 405),
    "no method": (request(VIDEO, method="FOO"), 400),
    "a tunnel": (request(method="CONNECT", path="evil.example:80"), 400),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    "a web socket": (
        request(method="GET", path="/score", content_type="", content_length="").replace(
            b"connection: close", b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA=="
        ),
        405,
    ),
}


@pytest.mark.parametrize("case", BAD, ids=[name.replace(" ", "-") for name in BAD])
def test_bad_requests_get_their_status(port: int, case: str) -> None:
    data, expected = BAD[case]
    answer = (
        exchange(port, data, ends=case != "a web socket") if case != "a web socket" else _first(port, data)
    )
    assert status(answer) == expected, answer[:300]
    assert b"Traceback" not in answer
    assert status(exchange(port, request(VIDEO))) == 200  # and the service goes on


def _first(port: int, data: bytes) -> bytes:
    """The first answer on a connection that stays open."""
    with socket.create_connection((HOST, port), 20) as link:
        link.sendall(data)
        return link.recv(65536)


def test_a_large_refused_body_does_not_cut_its_answer_off(port: int) -> None:
    for _ in range(5):
        assert status(exchange(port, request(bytes(3_000_000)), ends=False)) == 413


def fuzzed(generator: random.Random) -> bytes:
    """A request with something wrong in it, from the same number always the same."""
    body = bytearray(VIDEO)
    kind = generator.randrange(8)
    if kind == 0:  # the file cut off
        return request(bytes(body[: generator.randrange(len(body) // 2)]))
    if kind == 1:  # the file's index damaged
        for _ in range(64):
            body[generator.randrange(len(body) // 3)] = generator.randrange(256)
        return request(bytes(body))
    if kind == 2:  # JSON with something else in it
        value = generator.choice([None, 3, 1.5e308, [], {}, "x", "=", True, "\x00", "A" * 5, [[[]]]])
        key = generator.choice(["video", "instruction", "Video", "", "\u202e"])
        return as_json(
            json.dumps({"video": TEXT[: generator.randrange(100)], "instruction": "x", key: value}).encode()
        )
    if kind == 3:  # JSON with damaged bytes
        text = bytearray(json.dumps({"video": TEXT, "instruction": "open"}).encode())
        text[generator.randrange(12)] = generator.randrange(256)
        text[-1] = generator.randrange(48, 100)
        return as_json(bytes(text))
    if kind == 4:
        method = generator.choice(
            ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "POSTT", "post", ""]
        )
        return request(bytes(body), method=method)
    if kind == 5:
        most = generator.choice([127, 255])
        wild = "".join(chr(generator.randrange(33, most)) for _ in range(generator.randrange(1, 40)))
        return request(bytes(body), path=f"/{wild}")
    if kind == 6:
        header = "".join(chr(generator.randrange(1, 255)) for _ in range(generator.randrange(1, 80)))
        size = generator.choice([0, 10**7, 10**30])
        noise = header.replace("\r", "").replace("\n", "")
        headers = [noise] if generator.random() < 0.5 else []
        return request(b"", *headers, f"Expect: {generator.random()}", content_length=str(size))
    raw = bytearray(request(bytes(body)))
    for _ in range(20):  # noise over the head
        raw[generator.randrange(12)] = generator.randrange(256)
    return bytes(raw)


def test_three_hundred_fuzzed_requests_are_all_refused_as_bad(port: int) -> None:
    requests = [fuzzed(random.Random(number)) for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: exchange(port, data), requests))
    found = [status(answer) for answer in answers]
    assert [(n, code) for n, code in enumerate(found) if not 400 <= code < 500] == []
    assert {400, 404, 405, 413} <= set(found)
    assert status(exchange(port, request(VIDEO))) == 200


# --- slow clients ------------------------------------------------------------------------------------------------


def opened(port: int, data: bytes) -> socket.socket:
    link = socket.create_connection((HOST, port), 20)
    link.sendall(data)
    return link


SLOW = {
    "nothing": b"",
    "headers": b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nX-",
    "body": request(VIDEO)[: -len(VIDEO) // 2],
    "chunks": request(b"5\r\nabc", "Transfer-Encoding: chunked", content_length=""),
    "expectation": request(VIDEO, "Expect: 100-continue")[: -len(VIDEO)],
}


@pytest.mark.parametrize("kind", SLOW)
def test_two_hundred_slow_connections_hold_nothing_that_others_need(port: int, kind: str) -> None:
    links = [opened(port, SLOW[kind]) for _ in range(200)]
    try:
        for _ in range(5):
            assert status(exchange(port, request(VIDEO))) == 200
    finally:
        for link in links:
            link.close()


def test_a_client_that_does_not_read_holds_nothing(port: int) -> None:
    links = [
        opened(port, request(VIDEO, method="GET").replace(b"close", b"keep-alive") * 8) for _ in range(40)
    ]
    try:
        assert status(exchange(port, request(VIDEO))) == 200
    finally:
        for link in links:
            link.close()


def test_a_flood_of_requests_on_one_connection_is_cut_off(port: int) -> None:
    one = request(method="GET", path="/nope", content_type="").replace(b"close", b"keep-alive")
    answer = exchange(port, one * 2000)
    assert answer.count(b"HTTP/1.1 404") <= 10
    assert status(exchange(port, request(VIDEO))) == 200


def test_deadlines_end_slow_headers_and_slow_bodies(judge: Any) -> None:
    with front(judge, headers_s=0.3, timeout_s=0.5) as port:
        late = exchange(port, SLOW["headers"], ends=False)
        assert status(late) == 408
        assert exchange(port, b"", ends=False) == b""  # closed without an answer: nothing was asked
        answer = exchange(port, SLOW["body"], ends=False)
        assert status(answer) == 408
        assert told(answer) == {"error": "the body was not there within 0.5 s"}
        assert status(exchange(port, request(VIDEO))) == 200


def test_with_too_many_connections_the_one_that_waits_longest_goes(judge: Any) -> None:
    with front(judge, most_connections=20) as port:
        links = [opened(port, SLOW["headers"]) for _ in range(60)]
        try:
            assert status(exchange(port, request(VIDEO))) == 200
            time.sleep(0.1)
            links[0].settimeout(20)
            with suppress(ConnectionResetError):
                assert links[0].recv(1) == b""
        finally:
            for link in links:
                link.close()


def test_bodies_together_have_a_bound(judge: Any) -> None:
    held = Held()
    with front(held, largest_body_mb=1, held_mb=1) as port:
        links = [opened(port, request(bytes(400_000), content_length="900000")) for _ in range(2)]
        try:
            ends = time.monotonic() + 20
            while status(answer := exchange(port, request(bytes(400_000)))) != 429:
                assert time.monotonic() < ends
            assert b"retry-after: 2" in answer
        finally:
            held.go.set()
            for link in links:
                link.close()
        ends = time.monotonic() + 20
        while status(exchange(port, request(bytes(400_000)))) != 200:
            assert time.monotonic() < ends  # what was held is free again


# --- load, loss --------------------------------------------------------------------------------------------------


def asked_of(held: Held, pool: ThreadPoolExecutor, port: int, many: int) -> list[Future[bytes]]:
    """So many requests on their way; two of them are with the judge."""
    sent = [pool.submit(exchange, port, request(VIDEO), ends=False) for _ in range(many)]
    while held.asked < 2:
        time.sleep(0.01)
    return sent


def statuses(sent: list[Future[bytes]]) -> list[int]:
    return sorted(status(one.result()) for one in sent)


def test_what_would_wait_is_refused_at_once_and_told_when_to_come_back() -> None:
    held = Held()
    with front(held, burst=0) as port, ThreadPoolExecutor(20) as pool:
        accepted = asked_of(held, pool, port, 2)
        for data in (request(VIDEO), request(VIDEO, "Expect: 100-continue"), as_json(b"{}")):
            answer = exchange(port, data, ends=False)
            assert status(answer) == 429
            assert b"retry-after: 2" in answer
            assert told(answer) == {"error": "busy: too many requests at once"}
        assert status(exchange(port, request(method="GET", path="/health"))) == 200
        held.go.set()
        assert statuses(accepted) == [200, 200]
        assert held.asked == 2
        assert status(exchange(port, request(VIDEO))) == 200


def test_a_few_at_once_wait_before_the_judge_and_all_have_their_answer() -> None:
    held = Held()
    with front(held, burst=4) as port, ThreadPoolExecutor(6) as pool:
        sent = asked_of(held, pool, port, 6)
        time.sleep(0.2)
        assert held.asked == 2
        held.go.set()
        assert statuses(sent) == [200] * 6


def test_when_more_come_those_that_wait_are_turned_away() -> None:
    held = Held()
    with front(held, burst=2) as port, ThreadPoolExecutor(6) as pool:
        sent = asked_of(
            held, pool, port, 6
        )  # two are judged, two wait: each further one takes a place from them
        while sum(one.done() for one in sent) < 4:
            time.sleep(0.01)
        held.go.set()
        assert statuses(sent) == [200] * 2 + [429] * 4
        assert status(exchange(port, request(VIDEO))) == 200


def test_whoever_waits_for_a_turn_has_the_same_deadline() -> None:
    held = Held()
    with front(held, burst=4, timeout_s=0.5) as port, ThreadPoolExecutor(4) as pool:
        assert statuses(asked_of(held, pool, port, 4)) == [503] * 4
        held.go.set()
        assert status(exchange(port, request(VIDEO))) == 200


def test_refusals_leave_a_connection_in_step() -> None:
    """After a 429 the rest of the body is dropped, and the next request on the connection is read as one."""
    held = Held()
    with front(held, burst=0) as port, ThreadPoolExecutor(8) as pool:
        accepted = asked_of(held, pool, port, 2)
        keep = request(VIDEO).replace(b"connection: close", b"connection: keep-alive")
        answer = exchange(port, keep + keep + request(VIDEO))
        assert answer.count(b"HTTP/1.1 429") == 3
        held.go.set()
        assert statuses(accepted) == [200, 200]


class Lost(Held):
    """A judge whose only replica dies in the middle of a request, and comes back later."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = False

    async def judge(self, body: bytes, kind: str, instruction: str | None) -> tuple[int, dict]:
        self.asked += 1
        while not self.dead:
            await asyncio.sleep(0.01)
        if self.asked == 1:
            raise ActorDiedError()
        await asyncio.sleep(1000)  # waits for a replica to come
        raise AssertionError

    async def identity(self) -> dict[str, Any]:
        if self.dead:
            await asyncio.sleep(1000)
        return {"judge": "lost", "version": None}


def test_a_lost_replica_leaves_no_request_without_an_answer() -> None:
    lost = Lost()
    with front(lost) as port, ThreadPoolExecutor(4) as pool:
        waiting = asked_of(lost, pool, port, 3)  # one of them waits for its turn
        lost.dead = True
        answers = [one.result() for one in waiting]
        assert [status(answer) for answer in answers] == [503] * 3
        assert all(b"retry-after: 2" in answer for answer in answers)
        assert status(exchange(port, request(VIDEO))) == 503  # at once
        assert status(exchange(port, request(method="GET", path="/health"))) == 503
        lost.dead = False
        ends = time.monotonic() + 20
        while status(exchange(port, request(method="GET", path="/health"))) != 200:
            assert time.monotonic() < ends


def test_a_replica_that_hangs_is_noticed_although_no_call_fails() -> None:
    lost = Lost()
    lost.asked = 1
    with front(lost) as port, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(exchange, port, request(VIDEO), ends=False)
        lost.dead = True
        assert status(waiting.result()) == 503


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    from roboalign_ray.pipelines.serve.web_server import WebServer

    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on {HOST}:{number}"):
            WebServer(HOST, number)
    with pytest.raises(UserError, match="cannot listen on"):
        WebServer("no such host", 8000)
