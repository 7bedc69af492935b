"""The served judge: cost of a request; alone, at capacity, at ten times that, beside slow connections, killed.

    python benchmarks/served_judge.py                       # starts `roboalign judge serve`, measures
    python benchmarks/served_judge.py --set serving.batch=8 --seconds 5

Client and server share this machine, over loopback. Every request has a connection of its own. The capacity is the best
rate of any number of clients that wait for their answers, of a service that refuses nobody. Arrivals at ten times that
come at fixed times whatever the answers are (an open loop), so a slow server is not spared, and a time counts from when
its request was due. The best load is the rate of arrivals, up to twice the capacity, at which the same service answers
most of the same client's requests: it keeps the same promise about their time. Each part is bounded in time and in
number of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from _requests import Outcome, Requests

HOST = "127.0.0.1"
START_S = 300.0
ALONE = 300  # requests of which the p99 alone is taken
CLIENTS = (16, 8, 4, 2)  # that ask at once, where the capacity is measured
LOADS = (0.5, 0.7, 0.85, 1.0, 2.0)  # shares of the capacity, where the best load is looked for
PARTS = ["cost", "load", "slow", "kill"]
REFUSES_NOBODY = ("serving.slowdown=1000", "serving.burst=64")


def requests_to(port: int, video: bytes) -> Requests:
    """Requests for the score of a video, a file's bytes."""
    head = (
        f"POST /score?instruction=open+the+drawer HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: video/mp4\r\n"
        f"Content-Length: {len(video)}\r\nConnection: close\r\n\r\n"
    )
    return Requests((HOST, port), head.encode() + video)


async def slow_headers(requests: Requests) -> None:
    """A header a second, without end."""
    _, writer = await asyncio.open_connection(*requests.address)
    writer.write(f"POST /score HTTP/1.1\r\nHost: {HOST}\r\n".encode())
    for number in range(1000):
        writer.write(f"X-{number}: 1\r\n".encode())
        await asyncio.sleep(1.0)


async def slow_body(requests: Requests) -> None:
    """A byte of the body a second."""
    _, writer = await asyncio.open_connection(*requests.address)
    head, _, body = requests.request.partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    for number in range(len(body)):
        writer.write(body[number : number + 1])
        await asyncio.sleep(1.0)


async def slow_reader(requests: Requests) -> None:
    """A request a second on a connection whose answers nobody reads."""
    made = _deaf_socket()
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(made, requests.address)
        for _ in range(1000):
            await loop.sock_sendall(made, f"GET /nope HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            await asyncio.sleep(1.0)
    finally:
        made.close()


async def pipelined(requests: Requests) -> None:
    """Five thousand requests in one go, a second, on connections whose answers nobody reads."""
    made = _deaf_socket()
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(made, requests.address)
        await loop.sock_sendall(made, f"GET /nope HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 5000)
        await asyncio.sleep(1.0)
    finally:
        made.close()


def _deaf_socket() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    made.setblocking(False)
    return made


SLOW: dict[str, Callable[[Requests], Awaitable[None]]] = {
    "headers": slow_headers,
    "body": slow_body,
    "reader": slow_reader,
    "pipelined": pipelined,
}


async def beside(
    requests: Requests, slow: Callable[[Requests], Awaitable[None]], many: int, count: int
) -> Outcome:
    """Requests one after the other beside slow connections."""

    async def kept_up() -> None:
        while True:  # the server closes them: each is opened again
            with suppress(OSError):
                await slow(requests)
            await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(kept_up()) for _ in range(many)]
    try:
        await asyncio.sleep(1.0)
        return await asyncio.to_thread(requests.alone, count)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def measure_cost(figures: Figures, requests: Requests, server: int, count: int = 200) -> None:
    """Processor time of a request for a score, and of one that only passes through: /health asks the replica too."""
    health = Requests(
        requests.address, f"GET /health HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    )
    for name, asked in (("a score", requests), ("health", health)):
        before = _processor_seconds(server)
        outcome = asked.alone(count)
        spent = {role: now - before[role] for role, now in _processor_seconds(server).items()}
        figures.note(
            name, outcome, **{f"{role}_ms": 1000 * seconds / count for role, seconds in spent.items()}
        )


def _processor_seconds(server: int) -> dict[str, float]:
    """Processor time so far of the service's own process, of the replica, and of Ray's other processes."""
    own = psutil.Process(server)
    found = {"front": sum(own.cpu_times()[:2]), "replica": 0.0, "ray": 0.0}
    for process in own.children(recursive=True):
        with suppress(psutil.Error):
            role = "replica" if "ServeReplica" in " ".join(process.cmdline()) else "ray"
            found[role] += sum(process.cpu_times()[:2])
    return found


def killed(requests: Requests, server: int, seconds: float) -> tuple[Outcome, float]:
    """Four clients while the only replica is killed, and the seconds until it answers again."""
    replica = next(
        p for p in psutil.Process(server).children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())
    )
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(requests.closed, 4, seconds)
        time.sleep(1.0)
        replica.kill()
        gone = time.perf_counter()
        outcome = asking.result()
    back = [ended - gone for ended in outcome.ended if ended - gone > 0.5]  # not what was on its way
    return outcome, min(back, default=float("nan"))


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


class Figures:
    """What was measured, by part; printed as it comes."""

    def __init__(self) -> None:
        self.found: dict[str, dict] = {}

    def note(self, name: str, outcome: Outcome, **more: float) -> None:
        """Keep and print a part's figures."""
        self.found[name] = {
            "p50_ms": outcome.quantile(0.5),
            "p99_ms": outcome.quantile(0.99),
            "answers_per_s": outcome.rate,
            "statuses": dict(sorted(outcome.statuses.items())),
            **more,
        }
        rounded = {key: round(v, 2) if isinstance(v, float) else v for key, v in self.found[name].items()}
        print(f"{name}: {json.dumps(rounded)}", flush=True)


def measure_capacity(figures: Figures, requests: Requests, seconds: float) -> float:
    """Answers per second, of a service that refuses nobody."""
    requests.alone(20)  # from which it learns what is late
    requests.closed(max(CLIENTS), 2 * seconds)  # it finds its way to large batches meanwhile
    for clients in CLIENTS:
        figures.note(f"{clients} clients, none refused", requests.closed(clients, seconds))
    return max(found["answers_per_s"] for found in figures.found.values())


def measure_best(figures: Figures, requests: Requests, capacity: float, seconds: float) -> float:
    """Answers per second at the best load, of the service as it is."""
    rates = []
    for share in LOADS:
        outcome = requests.opened(share * capacity, seconds)
        figures.note(f"arrivals at {share:g} of the capacity", outcome)
        rates.append(outcome.rate)
    return max(rates)


def measure_load(figures: Figures, requests: Requests, capacity: float, seconds: float, repeats: int) -> None:
    """Ten times the capacity, each time beside what a request alone takes just before, and the best load."""
    best = measure_best(figures, requests, capacity, seconds)
    for number in range(1, repeats + 1):
        alone = requests.alone(ALONE)
        figures.note(f"alone, {number}", alone)
        flood = requests.opened(10 * capacity, seconds)
        ratio = flood.quantile(0.99) / alone.quantile(0.99)
        shares = {"of_capacity": flood.rate / capacity, "of_best_load": flood.rate / best}
        figures.note(f"ten times, {number}", flood, p99_ratio=ratio, **shares)
        time.sleep(1.0)


def measure(given: argparse.Namespace, figures: Figures) -> None:
    """All parts that are asked for, in order."""
    video, seconds, capacity = clip(), given.seconds, 0.0
    print(f"a clip of {len(video)} bytes", flush=True)
    if "load" in given.parts:
        with service([*given.set, *REFUSES_NOBODY]) as (port, _):
            capacity = measure_capacity(figures, requests_to(port, video), seconds)
    with service(given.set) as (port, server):
        requests = requests_to(port, video)
        requests.alone(20)
        if "cost" in given.parts:
            measure_cost(figures, requests, server)
        if "load" in given.parts:
            measure_load(figures, requests, capacity, seconds, given.repeats)
        if "slow" in given.parts:
            for name, slow in SLOW.items():
                for many in (40, 200):
                    outcome = asyncio.run(beside(requests, slow, many, int(10 * seconds)))
                    figures.note(f"{many} slow: {name}", outcome)
        if "kill" in given.parts:
            outcome, back = killed(requests, server, 3 * seconds)
            figures.note("killed", outcome, back_after_s=back)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the job's settings"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part under load")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3, help="of the load")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    if not 1 <= given.seconds <= 60:
        parser.error("--seconds must be between 1 and 60")
    figures = Figures()
    measure(given, figures)
    if given.out is not None:
        given.out.write_text(json.dumps(figures.found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
