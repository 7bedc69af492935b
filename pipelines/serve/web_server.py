"""The web server of the judge: uvicorn, with limits on what a connection may use before it is a request.

uvicorn itself waits for a request's headers without limit, and accepts any number of them. Here headers have a deadline
and a maximum size, a whole request has a deadline, and the number of connections is bounded. If there are too many, the
one that has waited longest for its headers is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from asyncio.events import TimerHandle
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from roboalign_ray.foundation.failures import UserError

_KEEP_ALIVE_S = 30
_REST_S = 5.0  # limit for the rest of a refused body, and margin beyond a request's own deadline
_LINGER_S = 1.0  # limit for the client to close after the last answer
_STOP_S = 5  # limit for requests in flight when the server stops
_BACKLOG = 1024
_MOST_PIPELINED = 8  # requests of one connection that may wait for the previous answer
_LATE = (408, "Request Timeout", "the request was not there in time")
_BROKEN_OFF = (400, "Bad Request", "the request ended before it was complete")
_LARGE = (431, "Request Header Fields Too Large", "the request's headers are too large")


@dataclass(frozen=True)
class HttpLimits:
    """Limits of a connection.

    Attributes:
        headers_s: deadline for a request's headers, seconds.
        request_s: deadline from a request's headers to the end of its answer, seconds.
        headers_bytes: largest size of a request's line and headers.
        connections: largest number of open connections.
    """

    headers_s: float
    request_s: float
    headers_bytes: int
    connections: int


class BoundedProtocol(HttpToolsProtocol):
    """One connection, within `limits`."""

    limits: ClassVar[HttpLimits]
    refusal: ClassVar[Callable[[bytes, int], bytes | None]]
    _timer: TimerHandle | None = None
    _read = 0  # bytes of a request whose headers are not complete
    _head = 0  # bytes of the request's target and headers
    _refused = False  # the current request already has its answer
    _closes = False  # after the answer to the current request
    _ended = False  # the last answer was sent: further input is dropped
    in_headers = True

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._allow(self.limits.headers_s)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._ended or self.transport.is_closing():
            return
        before = self.in_headers
        super().data_received(data)
        if self.in_headers:
            # The data may begin with the end of the last request, which counts for this request.
            self._read = self._read + len(data) if before else len(data)
            if self._read > self.limits.headers_bytes:
                self._end(*_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; it may still read its answer."""
        if self._ended:
            return False
        whole = self.cycle is not None and not (self.cycle.more_body or self.in_headers or self._refused)
        if whole and not self.cycle.response_complete:
            self._closes = True
            return True
        started = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not (self._refused or started) and (self._read or not self.in_headers):
            self._end(*_BROKEN_OFF)
            self.transport.close()
        return False

    def on_message_begin(self) -> None:
        """The first byte of a request has arrived."""
        self.in_headers, self._read, self._head = True, 0, 0
        self._allow(self.limits.headers_s)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of a request's target has arrived."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has arrived."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def send_400_response(self, msg: str) -> None:
        """Answer data that is not HTTP or has too large headers."""
        self._end(
            *(
                _LARGE
                if self._head > self.limits.headers_bytes
                else (400, "Bad Request", "not an HTTP request")
            )
        )

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self.limits.headers_bytes:
            raise ValueError("the headers are too large")  # stops the parser, which calls `send_400_response`

    def on_headers_complete(self) -> None:
        """The headers of a request have arrived."""
        self.in_headers = False
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise ValueError("too many requests without waiting for answers")
        refusal = type(self).refusal(self.url, self._length())
        if refusal is None or (self.cycle is not None and not self.cycle.response_complete):
            self._allow(self.limits.request_s + _REST_S)
            super().on_headers_complete()
            # uvicorn would close after the answer: if a part of the body is still to come, that cuts the answer off.
            self._closes, self.cycle.keep_alive = not self.cycle.keep_alive, True
            return
        self._unset_keepalive_if_required()
        self._refused = True
        self._allow(_REST_S)
        self.transport.write(refusal)
        if self.expect_100_continue:  # the following data may be the body or not
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        """A part of a request's body has arrived."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has arrived completely."""
        if not self._refused:
            answered = self.cycle.response_complete
            super().on_message_complete()
            if answered:
                self._rest(self._closes)
            return
        self._refused = False
        self._rest(not self.parser.should_keep_alive())

    def _rest(self, closes: bool) -> None:
        """A request and its answer are complete."""
        self.in_headers, self._read = True, 0
        if closes:
            self.transport.close()
        else:
            self._allow(_KEEP_ALIVE_S)

    def _length(self) -> int:
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return int(length) if length.isdigit() else 0

    def on_response_complete(self) -> None:
        """A request has its answer; the rest of its body is read and dropped."""
        super().on_response_complete()
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete):
            self._allow(self.limits.request_s + _REST_S)
        elif self.cycle is not None and self.cycle.more_body:
            self._allow(_REST_S)
        else:
            self._rest(self._closes)

    def _allow(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self.in_headers and self._read and not self._ended:
            self._end(*_LATE)
        else:
            self.transport.abort()

    def _end(self, status: int, phrase: str, line: str) -> None:
        body = f'{{"error":"{line}"}}'
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        if self._ended or self.transport.is_closing():
            return
        # If the server closes with unread data, the client gets a reset and may lose the answer, so it may close first.
        self._ended = True
        self.transport.write(f"{head}connection: close\r\n\r\n{body}".encode())
        self.transport.write_eof()
        self._allow(_LINGER_S)

    def _make_room(self) -> None:
        ours = [other for other in self.connections if isinstance(other, BoundedProtocol)]
        waiting = [other for other in ours if other.in_headers]
        min(waiting, key=lambda other: other.headers_until, default=self).transport.abort()

    @property
    def headers_until(self) -> float:
        """Loop time of the current phase's deadline."""
        return self._timer.when() if self._timer is not None else 0.0


class WebServer:
    """uvicorn in a separate thread.

    Args:
        host, port: address to listen on; it is bound at once, so that a used port gives an error before anything
            starts.

    Raises:
        UserError: it cannot listen on the address.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._socket = _bound(host, port)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(
        self,
        app: Any,
        refusal: Callable[[bytes, int], bytes | None],
        limits: HttpLimits,
        around: Callable[[], AbstractAsyncContextManager[None]],
        first: Callable[[], Awaitable[None]],
        timeout_s: float,
    ) -> None:
        """Answer requests from now on.

        Args:
            app: ASGI application.
            refusal: maps a request's target and body length to a complete HTTP answer if the application would refuse
                it at once, else to None. Under load most requests are refused; this needs no task and no objects for
                them.
            limits: limits of each connection.
            around: entered in the server's loop while it runs.
            first: run in the server's loop before it listens.
            timeout_s: limit for `first`.

        Raises:
            RuntimeError: `first` failed, or the server did not start.
        """
        protocol = type("Protocol", (BoundedProtocol,), {"limits": limits, "refusal": staticmethod(refusal)})
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # errors of clients are not logged
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_STOP_S,
            )
        )
        started = threading.Event()

        async def main(server: uvicorn.Server) -> None:
            async with around():
                await asyncio.wait_for(first(), timeout_s)
                started.set()
                await server.serve(sockets=[self._socket])

        def run(server: uvicorn.Server) -> None:
            try:
                with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                    runner.run(main(server))
            except BaseException as error:
                self._error = error
            finally:
                started.set()

        self._thread = threading.Thread(target=run, args=(self._server,), name="http", daemon=True)
        self._thread.start()
        started.wait()
        while self._error is None and self._thread.is_alive() and not self._server.started:
            self._thread.join(0.01)
        if not self._server.started:
            raise RuntimeError(f"the web server did not start: {self._error!r}") from self._error

    def stop(self) -> None:
        """Accept no more connections, let requests in flight end, then stop."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(2 * _STOP_S)
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror})",
            where="--host" if isinstance(error, socket.gaierror) else "--port",
            remedy="choose another",
        ) from error
    return bound
