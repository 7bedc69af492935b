"""The HTTP side of the served judge: authorisation, size limits, admission control, and HTTP status codes.

    request ──► Host, token, path, size ──► full? 429 ──► body, timeout_s ──► full? 429 ──► a replica ──► 200 scores
                400 401 404 405 413 415                   408                              400 · 500 502 · 503

A request is sent to a replica only when its body is complete, so slow connections occupy no replica. `roboalign judge
serve` runs this in its own web server (`pipelines/serve/web_server.py`); with a Serve config file, `JudgeIngress` runs
behind Serve's web server.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from roboalign_ray.actors.serve_ports import keep_serve_port_on_loopback
from roboalign_ray.config import ServingConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.judge.serving.admission import Admission, Ticket
from roboalign_ray.judge.serving.http import INSTRUCTION, check_content_type

Answer = tuple[int, dict[str, Any]]
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MEGABYTE = 1_000_000
_PROBE_S = 1.0  # limit for an answer to a health check
_SUSPECT_S = 2.0  # if requests wait this long without an answer, a health check is made
_BUSY = "busy: too many requests at once"
_PATHS = {"/score": ("POST",), "/health": ("GET", "HEAD"), "/-/healthz": ("GET", "HEAD")}


class Refused(Exception):
    """A request that is refused before it reaches a judge."""

    def __init__(self, status: int, error: str, **headers: str) -> None:
        super().__init__(error)
        self.response = JSONResponse({"error": error}, status, headers)


class JudgeFront:
    """Answers HTTP requests with the help of the replicas.

    Args:
        ask: maps a request's body, content type and instruction (from the URL, or None) to a status and JSON. Raises
            Ray's errors if no replica answers.
        identity: health check; returns the name of the judge.
        serving: limits.
        hosts: names allowed in the Host header; empty allows all.
        token: bearer token that requests need; empty needs none.
        notify: called with one line when the judge is lost, and when it is back.
    """

    def __init__(
        self,
        ask: Callable[[bytes, str, str | None], Awaitable[Answer]],
        identity: Callable[[], Awaitable[dict[str, Any]]],
        serving: ServingConfig,
        hosts: tuple[str, ...] = (),
        token: str = "",
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ask, self._identity, self._serving, self._notify = ask, identity, serving, notify
        self._hosts = frozenset(name.lower() for name in hosts)
        self._token = token.encode()
        self._busy_answer = _answer_bytes(Refused(429, _BUSY, **self._retry()).response)
        self._admission = Admission(serving.slowdown, serving.most_requests, serving.burst)
        self._turns: dict[Ticket, asyncio.Future[bool]] = {}  # per waiting request: whether it may start
        self._held = 0  # bytes of bodies
        self._pending: dict[asyncio.Future[Answer], float] = {}
        self._last_answer = 0.0
        self._up = asyncio.Event()
        self._up.set()
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        request = Request(scope, receive)
        response = await self.answer(request)
        await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """Answer one HTTP request."""
        try:
            path = self._checked(request)
            if path != "/score":
                return await self._health()
            return await self._scored(request)
        except Refused as refused:
            return refused.response

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch the replicas during the block."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def warm_up(self, body: bytes, kind: str, instruction: str, times: int = 5) -> None:
        """Judge a video a few times: the first time is the slowest, the others measure the time of a request alone."""
        for _ in range(times):
            ticket, began = self._admission.admit(len(body)), time.monotonic()
            status, _ = await self._ask(body, kind, instruction)
            if ticket is not None:
                first = self._last_answer == 0
                self._last_answer = time.monotonic()
                measured = status == 200 and not first
                self._admission.finish(ticket, self._last_answer - began if measured else None)

    # --- refusals before the body is read ----------------------------------------------------------------------------

    def _checked(self, request: Request) -> str:
        """The path of an authorised request.

        Raises:
            Refused: the host, token, path or method is wrong.
        """
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if self._hosts:
            named = request.headers.getlist("host")
            if len(named) != 1 or _host_name(named[0]) not in self._hosts:
                raise Refused(400, "the Host header names a host that is not allowed here")
        if path != "/-/healthz" and self._token:
            kind, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
            if kind.lower() != "bearer" or not same:
                raise Refused(401, "a bearer token is needed", **{"WWW-Authenticate": "Bearer"})
        methods = _PATHS.get(path)
        if methods is None:
            raise Refused(404, "no such path here; POST /score or GET /health")
        if request.method not in methods:
            allowed = ", ".join(methods)
            raise Refused(405, f"{path} takes {allowed}", Allow=allowed)
        return path

    def _check_head(self, request: Request) -> tuple[str, str | None]:
        """Content type and instruction of a request for a score.

        Raises:
            Refused: the body is larger than allowed, or its type is not supported.
        """
        headers = request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "a compressed body is not accepted; send it as it is")
        if _length(request) > self._serving.largest_body_mb * _MEGABYTE:
            raise self._too_large()
        kind = headers.get("content-type", "")
        try:
            check_content_type(kind)
        except UserError as error:
            raise Refused(400, error.line()) from None
        return kind, request.query_params.get(INSTRUCTION)

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self._serving.largest_body_mb:g} MB")

    def _busy(self, size_bytes: int = 0) -> Refused:
        self._refuse(size_bytes)
        return Refused(429, _BUSY, **self._retry())

    def refusal(self, target: bytes, length: int) -> bytes | None:
        """The complete HTTP answer to a request for a score that would be refused at once; None otherwise.

        Args:
            target: target in the request's first line.
            length: length of its body in bytes.
        """
        if not self._admission.full or not target.startswith(b"/score"):
            return None
        self._refuse(length)
        return self._busy_answer

    def _refuse(self, size_bytes: int) -> None:
        other = self._admission.refuse(size_bytes)
        if other is not None and not (turn := self._turns[other]).done():
            turn.set_result(False)

    def _retry(self) -> dict[str, str]:
        return {"Retry-After": str(self._serving.retry_after_s)}

    # --- health ------------------------------------------------------------------------------------------------------

    async def _health(self) -> Response:
        if not self._up.is_set():
            raise self._down()
        try:
            return JSONResponse(await asyncio.wait_for(self._identity(), _SUSPECT_S))
        except (TimeoutError, RayError, RayServeException):
            raise self._down() from None

    def _down(self) -> Refused:
        return Refused(503, "no judge is running at the moment; one is being started", **self._retry())

    # --- a score -----------------------------------------------------------------------------------------------------

    async def _scored(self, request: Request) -> Response:
        began, serving = time.monotonic(), self._serving
        kind, instruction = self._check_head(request)
        if not self._up.is_set():
            raise self._down()
        if self._admission.full:
            raise self._busy(_length(request))
        held = [0]
        try:
            try:
                body = await asyncio.wait_for(self._body(request, held), serving.timeout_s)
            except TimeoutError:
                raise Refused(408, f"the body was not there within {serving.timeout_s:g} s") from None
            except ClientDisconnect:
                raise Refused(400, "the request ended before its body did") from None
            return await self._admitted(body, kind, instruction, began + serving.timeout_s)
        finally:
            self._held -= held[0]

    async def _body(self, request: Request, held: list[int]) -> bytes:
        """Read the body, up to the allowed size.

        Args:
            held: receives the bytes that the body adds to the total, also when reading fails.
        """
        parts: list[bytes] = []
        async for part in request.stream():
            held[0] += len(part)
            self._held += len(part)
            if held[0] > self._serving.largest_body_mb * _MEGABYTE:
                raise self._too_large()
            if self._held > self._serving.held_mb * _MEGABYTE:
                raise self._busy()
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _admitted(self, body: bytes, kind: str, instruction: str | None, ends: float) -> Response:
        ticket = self._admission.admit(len(body))
        if ticket is None:
            raise self._busy(len(body))
        status, took = None, None
        try:
            await self._turn(ticket, ends)
            began = time.monotonic()
            status, answer = await self._asking(body, kind, instruction, ends)
            took = time.monotonic() - began if status == 200 else None
        finally:
            for other in self._admission.finish(ticket, took):
                if not (turn := self._turns[other]).done():
                    turn.set_result(True)
        return JSONResponse(answer, status, self._retry() if status in (429, 503) else None)

    async def _turn(self, ticket: Ticket, ends: float) -> None:
        """Wait until an accepted request may start.

        Raises:
            Refused: too many other requests came, the deadline passed, or the judge was lost meanwhile.
        """
        if ticket.started:
            return
        self._turns[ticket] = asyncio.get_running_loop().create_future()
        try:
            starts = await asyncio.wait_for(self._turns[ticket], max(0.0, ends - time.monotonic()))
        except TimeoutError:
            raise self._too_late() from None
        finally:
            del self._turns[ticket]
        if not starts:
            raise Refused(429, _BUSY, **self._retry())
        if not self._up.is_set():
            raise self._down()

    def _too_late(self) -> Refused:
        return Refused(503, f"no score within {self._serving.timeout_s:g} s", **self._retry())

    async def _asking(self, body: bytes, kind: str, instruction: str | None, ends: float) -> Answer:
        """The answer of a replica.

        Raises:
            Refused: no replica answered in time.
        """
        call = asyncio.ensure_future(self._ask(body, kind, instruction))
        if not self._pending:
            self._last_answer = time.monotonic()  # start of the wait for an answer
        self._pending[call] = time.monotonic()
        try:
            answer = await asyncio.wait_for(call, max(0.0, ends - time.monotonic()))
        except TimeoutError:
            raise self._too_late() from None
        except BackPressureError:
            raise self._busy() from None
        except asyncio.CancelledError:
            if self._up.is_set():
                raise  # this request was cancelled
            raise self._down() from None
        except (RayError, RayServeException) as error:
            self._look()
            lost = f"the judge was lost while it had this request ({type(error).__name__}); send it again"
            raise Refused(503, lost, **self._retry()) from None
        except Exception as error:
            raise Refused(500, f"{type(error).__name__}: {first_line(error)}") from None
        finally:
            self._pending.pop(call, None)
        self._last_answer = time.monotonic()
        return answer

    # --- health of the replicas --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_S)
            if self._pending and time.monotonic() - self._last_answer > _SUSPECT_S:
                self._look()

    def _look(self) -> None:
        """Check whether any replica answers; until one does, requests are refused at once."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._until_alive())

    async def _until_alive(self) -> None:
        while not await self._alive():
            if self._up.is_set():
                self._notify("the judge does not answer; requests get status 503 until one is back")
            self._up.clear()
            for call in list(self._pending):
                call.cancel()
            await asyncio.sleep(_PROBE_S / 2)
        self._last_answer = time.monotonic()
        if not self._up.is_set():
            self._notify("a judge answers again")
        self._up.set()

    async def _alive(self) -> bool:
        try:
            await asyncio.wait_for(self._identity(), _PROBE_S)
        except (TimeoutError, RayError, RayServeException):
            return False
        return True


class JudgeIngress:
    """The front behind Serve's own web server, for a Serve config file.

    Args:
        serving: limits; its list of allowed hosts, empty for all.
        judge: handle of the replicas.
    """

    def __init__(self, serving: ServingConfig, judge: Any) -> None:
        keep_serve_port_on_loopback()
        self._front = front_of(judge, serving, serving.allowed_hosts)

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        return await self._front.answer(request)


def front_of(
    judge: Any,
    serving: ServingConfig,
    hosts: tuple[str, ...],
    notify: Callable[[str], None] = lambda line: None,
) -> JudgeFront:
    """A front for the replicas of a handle; its token comes from this process's environment.

    Raises:
        UserError: the token contains characters that a header cannot hold.
    """

    async def ask(body: bytes, kind: str, instruction: str | None) -> Answer:
        return await judge.judge.remote(body, kind, instruction)

    async def identity() -> dict[str, Any]:
        return await judge.identity.remote()

    return JudgeFront(ask, identity, serving, hosts, bearer_token(serving), notify)


def bearer_token(serving: ServingConfig) -> str:
    """The bearer token that requests need, from the environment; empty if none is set.

    Raises:
        UserError: the token contains characters that a header cannot hold.
    """
    token = os.environ.get(serving.token_env, "")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            "holds spaces or characters that no HTTP header can hold",
            where=serving.token_env,
            remedy="use letters and digits, for example from: openssl rand -hex 32",
        )
    return token


def _length(request: Request) -> int:
    """Bytes of the body according to the headers; 0 if they do not give it."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else 0


def _answer_bytes(response: Response) -> bytes:
    """The bytes of a response on a connection that stays open."""
    lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; "" if it has no name."""
    header = header.strip().lower()
    if header.startswith("["):  # an IPv6 address
        return header[1:].partition("]")[0]
    return header.partition(":")[0].removesuffix(".")
