"""One HTTP call to a server that may be slow, broken or hostile: total deadline, bounded size, JSON reply.

The deadline covers the name look-up, the connection, headers and body, even if they arrive slowly. Redirects are not
followed, since the key and the frames would go to another host. Compressed answers are not requested and not read.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from roboalign_ray.foundation.failures import first_line

LARGEST_REPLY = 4_000_000  # bytes; five answers of 8,000 tokens are a twentieth of that
_MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SHOWN = 200  # characters of a server's message


class ServerError(Exception):
    """A call failed; `may_pass` says whether another attempt may succeed."""

    def __init__(self, reason: str, *, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


def call_json(
    url: str, body: dict[str, Any] | None, headers: dict[str, str], timeout: float
) -> dict[str, Any]:
    """POST a JSON body, or GET without one, and return the reply's JSON object.

    Args:
        url: http or https.
        body: None for GET.
        headers: request headers.
        timeout: deadline for the whole call, seconds.

    Raises:
        ServerError: there is no answer in time, the status is an error, or the answer is not a JSON object.
    """
    data = None if body is None else json.dumps(body).encode()
    loop = asyncio.new_event_loop()  # closed without waiting for a name look-up that hangs
    try:
        status, encoding, reply = loop.run_until_complete(_call(url, data, headers, timeout))
    except TimeoutError:
        raise ServerError("no answer in time", may_pass=True) from None
    except (aiohttp.InvalidURL, ValueError) as error:
        raise ServerError(f"not a valid URL: {first_line(error)}", may_pass=False) from error
    except (aiohttp.ClientError, OSError) as error:
        raise ServerError(f"{type(error).__name__}: {_one_line(first_line(error))}", may_pass=True) from error
    finally:
        loop.close()
    if 300 <= status < 400:
        raise ServerError(f"{status}: the server redirects, which is not followed", may_pass=False)
    if status >= 400:
        raise ServerError(f"{status}: {_error_message(reply)}", may_pass=status in _MAY_PASS)
    if encoding != "identity":
        raise ServerError(f"the answer is compressed ({_one_line(encoding)})", may_pass=False)
    try:
        answer = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"the answer is not JSON ({type(error).__name__})", may_pass=True) from error
    if not isinstance(answer, dict):
        raise ServerError("the answer is not a JSON object", may_pass=True)
    return answer


async def _call(
    url: str, data: bytes | None, headers: dict[str, str], timeout: float
) -> tuple[int, str, bytes]:
    """Status, content encoding and body of the answer."""
    async with (
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        ) as session,
        session.request(
            "GET" if data is None else "POST",
            url,
            data=data,
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **headers},
            allow_redirects=False,
        ) as answer,
    ):
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > LARGEST_REPLY:
                raise ServerError(f"the answer is larger than {LARGEST_REPLY:,} bytes", may_pass=False)
        return answer.status, answer.headers.get("Content-Encoding", "identity").lower(), bytes(body)


def _error_message(reply: bytes) -> str:
    """The error message of a server's reply, in one line."""
    try:
        body = json.loads(reply)
        error = body.get("error", body) if isinstance(body, dict) else body
        return _one_line(str(error.get("message", error) if isinstance(error, dict) else error))
    except (ValueError, RecursionError):
        return "no reason given"


def _one_line(text: str) -> str:
    """External text in one short line without control characters."""
    line = next(iter(text.strip().splitlines()), "")[:_SHOWN]
    return "".join(sign if sign.isprintable() else "?" for sign in line)
