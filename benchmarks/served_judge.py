"""The served judge under load: alone, at its capacity, at ten times that, beside slow connections, and after a kill.

    python benchmarks/served_judge.py                       # starts `roboalign judge serve`, measures
    python benchmarks/served_judge.py --set serving.batch=8 --seconds 5

Client and server share this machine, over loopback. Every request has a connection of its own. Arrivals at ten times
the capacity come at fixed times whatever the answers are (an open loop), so a slow server is not spared. Each part is
bounded in time and in number of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

HOST = "127.0.0.1"
START_S, ANSWER_S = 300.0, 60.0
MOST_OPEN = 900  # connections of the client at a time
MOST_SENT = 20_000  # requests in one part
WORKERS = 8


@dataclass
class Outcome:
    """What one part saw.

    Attributes:
        seconds: of each answer of status 200.
        statuses: how many answers of each; 0 is no answer.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Answers of status 200 per second."""
        return self.statuses[200] / self.took

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.quantile(self.seconds, share)) * 1000 if self.seconds else float("nan")


class Client:
    """Sends one request again and again.

    Args:
        port: of the service.
        video: a file's bytes.
    """

    def __init__(self, port: int, video: bytes) -> None:
        self.port = port
        head = (
            f"POST /score?instruction=open+the+drawer HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: video/mp4\r\n"
            f"Content-Length: {len(video)}\r\nConnection: close\r\n\r\n"
        )
        self.request = head.encode() + video

    async def ask(self, outcome: Outcome) -> None:
        """One request on a connection of its own."""
        began = time.perf_counter()
        status = 0
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                try:
                    writer.write(self.request)
                    answer = await reader.read()
                finally:
                    writer.close()
            status = int(answer[9:12]) if answer else 0
        except (OSError, TimeoutError):
            status = 0
        outcome.statuses[status] += 1
        if status == 200:
            outcome.seconds.append(time.perf_counter() - began)

    async def alone(self, count: int) -> Outcome:
        """One request after the other."""
        outcome, began = Outcome(), time.perf_counter()
        for _ in range(count):
            await self.ask(outcome)
            await asyncio.sleep(0.01)
        outcome.took = time.perf_counter() - began
        return outcome

    async def closed(self, workers: int, seconds: float) -> Outcome:
        """So many clients that each wait for their answer before they ask again."""
        outcome, began = Outcome(), time.perf_counter()

        async def work() -> None:
            while time.perf_counter() - began < seconds and outcome.statuses.total() < MOST_SENT:
                await self.ask(outcome)

        await asyncio.gather(*(work() for _ in range(workers)))
        outcome.took = time.perf_counter() - began
        return outcome

    async def opened(self, rate: float, seconds: float) -> Outcome:
        """So many requests a second, whatever comes back."""
        outcome, began = Outcome(), time.perf_counter()
        count = min(int(rate * seconds), MOST_SENT)
        tasks: set[asyncio.Task[None]] = set()
        for number in range(count):
            ahead = began + number / rate - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            if len(tasks) >= MOST_OPEN:
                outcome.statuses[0] += 1
                continue
            task = asyncio.create_task(self.ask(outcome))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        sent = time.perf_counter() - began
        await asyncio.gather(*tasks)
        outcome.took = max(sent, seconds)
        return outcome


async def slow_headers(client: Client) -> None:
    """A header a second, without end."""
    _, writer = await asyncio.open_connection(HOST, client.port)
    writer.write(f"POST /score HTTP/1.1\r\nHost: {HOST}\r\n".encode())
    for number in range(1000):
        writer.write(f"X-{number}: 1\r\n".encode())
        await asyncio.sleep(1.0)


async def slow_body(client: Client) -> None:
    """A byte of the body a second."""
    _, writer = await asyncio.open_connection(HOST, client.port)
    head, _, body = client.request.partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    for number in range(len(body)):
        writer.write(body[number : number + 1])
        await asyncio.sleep(1.0)


async def slow_reader(client: Client) -> None:
    """A request a second on a connection whose answers nobody reads."""
    made = _deaf_socket()
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(made, (HOST, client.port))
        for _ in range(1000):
            await loop.sock_sendall(made, f"GET /nope HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            await asyncio.sleep(1.0)
    finally:
        made.close()


async def pipelined(client: Client) -> None:
    """Five thousand requests in one go, a second, on connections whose answers nobody reads."""
    made = _deaf_socket()
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(made, (HOST, client.port))
        await loop.sock_sendall(made, f"GET /nope HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 5000)
        await asyncio.sleep(1.0)
    finally:
        made.close()


def _deaf_socket() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    made.setblocking(False)
    return made


SLOW: dict[str, Callable[[Client], Awaitable[None]]] = {
    "headers": slow_headers,
    "body": slow_body,
    "reader": slow_reader,
    "pipelined": pipelined,
}


async def beside(client: Client, slow: Callable[[Client], Awaitable[None]], many: int, count: int) -> Outcome:
    """Requests one after the other beside slow connections."""

    async def kept_up() -> None:
        while True:  # the server closes them: each is opened again
            with suppress(OSError):
                await slow(client)
            await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(kept_up()) for _ in range(many)]
    try:
        await asyncio.sleep(1.0)
        return await client.alone(count)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def killed(client: Client, server: int, seconds: float) -> tuple[Outcome, float]:
    """Four clients while the only replica is killed, and the seconds until it answers again."""
    outcome = Outcome()
    began = time.perf_counter()
    back = float("nan")

    async def work() -> None:
        nonlocal back
        while time.perf_counter() - began < seconds:
            before = len(outcome.seconds)
            await client.ask(outcome)
            if len(outcome.seconds) == before:
                await asyncio.sleep(0.1)
            elif np.isnan(back) and time.perf_counter() - gone > 0.5:
                back = time.perf_counter() - gone

    gone = float("inf")
    tasks = [asyncio.create_task(work()) for _ in range(4)]
    await asyncio.sleep(1.0)
    replica = next(
        p for p in psutil.Process(server).children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())
    )
    replica.send_signal(signal.SIGKILL)
    gone = time.perf_counter()
    await asyncio.gather(*tasks)
    outcome.took = time.perf_counter() - began
    return outcome, back


@contextmanager
def service(settings: list[str]) -> Iterator[tuple[int, int]]:
    """`roboalign judge serve` for the length of the block: its port and process id."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "roboalign_ray.pipelines.cli.main",
        "judge",
        "serve",
        "--port",
        str(port),
    ]
    command += [part for value in settings for part in ("--set", value)]
    with tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            ends = time.monotonic() + START_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise SystemExit(f"the service did not start:\n{log.read()[-2000:]}")
                time.sleep(0.5)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(60)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), 5) as link:
            link.sendall(f"GET /-/healthz HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            return link.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def clip() -> bytes:
    """A simulated clip of those that come along, encoded anew."""
    from roboalign_ray.config.loading import load_job
    from roboalign_ray.episodes.video import encode_video
    from roboalign_ray.judge.data.label_store import LabelledPairs
    from roboalign_ray.pipelines.cluster.weight_folders import replay_folder

    pair = LabelledPairs([replay_folder(load_job("demo"))]).read(0)
    return encode_video(pair.frames, pair.fps)


async def measured(client: Client, server: int, seconds: float, parts: set[str]) -> dict[str, dict]:
    """All parts, in order."""
    found: dict[str, dict] = {}

    def note(name: str, outcome: Outcome, **more: float) -> None:
        found[name] = {
            "p50_ms": outcome.quantile(0.5),
            "p99_ms": outcome.quantile(0.99),
            "answers_per_s": outcome.rate,
            "statuses": dict(sorted(outcome.statuses.items())),
            **more,
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)

    await client.alone(20)
    alone = await client.alone(int(20 * seconds))
    note("alone", alone)
    if "load" in parts:
        full = await client.closed(WORKERS, seconds)
        note("capacity", full)
        flood = await client.opened(10 * full.rate, seconds)
        note(
            "ten times",
            flood,
            p99_ratio=flood.quantile(0.99) / alone.quantile(0.99),
            goodput=flood.rate / full.rate,
        )
        await asyncio.sleep(1.0)
    if "slow" in parts:
        for name, slow in SLOW.items():
            for many in (40, 200):
                note(f"{many} slow: {name}", await beside(client, slow, many, int(10 * seconds)))
    if "kill" in parts:
        outcome, back = await killed(client, server, 3 * seconds)
        note("killed", outcome, back_after_s=back)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the job's settings"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part under load")
    parser.add_argument(
        "--parts", nargs="*", default=["load", "slow", "kill"], choices=["load", "slow", "kill"]
    )
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    if not 1 <= given.seconds <= 60:
        parser.error("--seconds must be between 1 and 60")
    video = clip()
    print(f"a clip of {len(video)} bytes", flush=True)
    with service(given.set) as (port, server):
        found = asyncio.run(measured(Client(port, video), server, given.seconds, set(given.parts)))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
