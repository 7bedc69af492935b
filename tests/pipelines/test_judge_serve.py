"""The served judge: started by its command, asked over HTTP, by many at once and by the wrong ones."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from served_judge import film, replica, small_student

from roboalign_ray.config import JobConfig, SmallTeacherConfig
from roboalign_ray.config.base import ConfigError
from roboalign_ray.episodes.video import decode_video, encode_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import maxima, names
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.serve.judge import NAME, application, ingress_application, judge_application

START_S, ANSWER_S = 300, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of version 3."""
    return small_student(tmp_path_factory.mktemp("served") / "student")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url: str, body: bytes | None, kind: str = "video/mp4", method: str = "POST") -> tuple[int, str, Any]:
    """(status, body, headers)."""
    request = urllib.request.Request(url, body, {"Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def score(url: str, video: bytes, instruction: str) -> tuple[int, str, Any]:
    return ask(f"{url}/score?instruction={urllib.parse.quote(instruction)}", video)


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command in a process of its own, in a group of its own: what a terminal's Ctrl-C reaches is that group."""
    settings = {
        "judge.weights": folder,
        "cluster.object_store_gb": 0.2,
        "cluster.scorer.num_cpus": 0.5,
        "serving.batch": 4,
        "serving.largest_body_mb": 1,
    }
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "roboalign_ray.pipelines.cli.main",
        "judge",
        "serve",
        "--port",
        str(port),
    ]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + START_S
        while "judges at" not in log.read_text():
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < ends, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0, log.read_text()[-2000:]
        told = log.read_text()
        assert not any(word in told for word in ("infinite retries", "Traceback", "not be considered")), told
        assert "judge does not answer; requests get status 503" in told
        assert told.rstrip().endswith("a judge answers again")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_it_says_who_judges(service: str) -> None:
    status, body, _ = ask(f"{service}/health", None, method="GET")
    assert (status, json.loads(body)) == (200, {"judge": "student", "version": 3})
    assert ask(f"{service}/-/healthz", None, method="GET")[0] == 200


def test_nothing_listens_beyond_this_machine(service: str) -> None:
    """Ray's metrics page and all other ports of the service's processes, the web server's too."""
    ours = psutil.Process().children(recursive=True)
    addresses = []
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            addresses += [link.laddr for link in process.net_connections("tcp") if link.status == "LISTEN"]
    assert len(addresses) > 4
    assert [a for a in addresses if a.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []


def replica_process() -> psutil.Process:
    ours = psutil.Process().children(recursive=True)
    [served] = [process for process in ours if "ServeReplica" in " ".join(process.cmdline())]
    return served


def test_a_replica_starts_with_settings_that_keep_its_memory(service: str) -> None:
    """glibc reads them once, as the process begins: set later they would be without effect."""
    found = replica_process().environ()
    assert int(found["MALLOC_MMAP_THRESHOLD_"]) == 32 * 2**20
    assert int(found["MALLOC_TRIM_THRESHOLD_"]) == 2**30


def test_many_at_once_get_the_scores_of_their_own_video(service: str, folder: Path) -> None:
    films = [film(n, frames=4 + n) for n in range(8)]
    told = [f"move block {n}" for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda pair: score(service, *pair), zip(films, told, strict=True)))
    said = Student.load(folder).score([decode_video(one) for one in films], told)
    for (status, body, _), scores, std in zip(answers, said.scores, said.std, strict=True):
        assert status == 200
        answer = json.loads(body)
        np.testing.assert_allclose([answer["scores"][name] for name in names()], scores, atol=1e-4)
        np.testing.assert_allclose([answer["std"][name] for name in names()], std, atol=1e-4)
        assert answer["total"] == pytest.approx(scores.sum(), abs=1e-3)
        assert (answer["judge"], answer["version"], answer["rationale"]) == ("student", 3, None)
    assert len({body for _, body, _ in answers}) == 8


def test_base64_in_json_gets_the_same_scores_as_the_file(service: str) -> None:
    told = {"video": base64.b64encode(film(0)).decode(), "instruction": "open it"}
    by_json = ask(f"{service}/score", json.dumps(told).encode(), "application/json")
    by_file = score(service, film(0), "open it")
    assert by_json[:2] == by_file[:2]
    assert by_json[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "kind", "method", "status", "line"),
    [
        ("score?instruction=x", b"no video", "video/mp4", "POST", 400, "cannot be decoded"),
        ("score?instruction=x", film(0, frames=1), "video/mp4", "POST", 400, "1 frame(s) cannot be judged"),
        ("score", film(0), "video/mp4", "POST", 400, "the instruction is empty"),
        ("score", b'{"video": 3}', "application/json", "POST", 400, "missing or not a string"),
        ("score", b"{", "application/json", "POST", 400, "not JSON"),
        ("score", b"x", "text/plain", "POST", 400, "'text/plain' is not understood"),
        ("score", bytes(1_000_001), "video/mp4", "POST", 413, "larger than 1 MB"),
        ("score", None, "", "GET", 405, "/score takes POST"),
        ("scores", b"", "", "POST", 404, "no such path here"),
    ],
)
def test_bad_input_gets_its_status_and_one_line(
    service: str, path: str, body: bytes | None, kind: str, method: str, status: int, line: str
) -> None:
    found, told, _ = ask(f"{service}/{path}", body, kind, method)
    assert found == status
    error = json.loads(told)["error"]
    assert line in error
    assert "\n" not in error


def test_more_than_it_can_hold_is_refused_and_told_to_wait(service: str) -> None:
    slow = film(1, frames=24, side=96)  # most of the time goes into decoding
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda _: score(service, slow, "open it"), range(48)))
    statuses = {status for status, _, _ in answers}
    assert statuses == {200, 429}
    assert {headers["Retry-After"] for status, _, headers in answers if status == 429} == {"2"}
    totals = [json.loads(body)["total"] for status, body, _ in answers if status == 200]
    np.testing.assert_allclose(totals, totals[0], atol=1e-4)
    assert score(service, film(0), "open it")[0] == 200


def test_the_only_replica_is_killed_and_every_request_has_its_answer(service: str) -> None:
    """Runs last: until the next replica is there, requests are refused in time, then they are judged again."""
    served, slow = replica_process(), film(1, frames=24, side=96)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(score, service, slow, "open it") for _ in range(6)]
        served.kill()
        found = {answer.result()[0] for answer in answers}
    assert found <= {200, 503}, found
    ends = time.monotonic() + START_S
    while (answer := score(service, film(0), "open it"))[0] != 200:
        assert answer[0] in (429, 503)
        assert answer[2]["Retry-After"] == "2"
        assert time.monotonic() < ends
        time.sleep(0.5)
    assert served.pid not in {process.pid for process in psutil.Process().children(recursive=True)}


# --- without a cluster -------------------------------------------------------------------------------------------


class Faulty:
    """A judge that breaks as often as it is told to."""

    name, version = "faulty", None

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks

    def judge(self, requests: Any) -> Any:
        if self.breaks:
            self.breaks -= 1
            raise RuntimeError("device lost\nand a long story")
        raise AssertionError("asked more often than the test meant")


def test_a_replica_that_fails_again_and_again_says_that_it_is_ill(folder: Path) -> None:
    async def story() -> None:
        service = replica(folder, failures_in_a_row=2)
        sound, service._judge = service._judge, Faulty(2)
        for _ in range(2):
            await service.check_health()
            assert await service.judge(film(0), "video/mp4", "open it") == (
                500,
                {"error": "RuntimeError: device lost"},
            )
        with pytest.raises(RuntimeError, match="the last 2 batches failed"):
            await service.check_health()
        service._judge = sound
        assert (await service.judge(film(0), "video/mp4", "open it"))[0] == 200
        await service.check_health()
        assert (await service.judge(b"no video", "video/mp4", "open it"))[0] == 400
        await service.check_health()

    asyncio.run(story())


def test_what_waits_is_judged_together_and_in_order(folder: Path) -> None:
    """Without waiting for a batch to fill: the first is judged alone, those that came meanwhile in batches."""

    async def story() -> None:
        service = replica(folder, batch=3)
        sound, sizes, go = service._judge, [], threading.Event()

        class Counted:
            name, version = "counted", 1

            def judge(self, requests: Any) -> Any:
                sizes.append(len(requests))
                go.wait(60)
                return sound.judge(requests)

        service._judge = Counted()
        films = [film(n, frames=4 + n) for n in range(6)]
        asked = [asyncio.create_task(service.judge(films[0], "video/mp4", "open it"))]
        async with asyncio.timeout(60):
            while not sizes:
                await asyncio.sleep(0.01)
            asked += [asyncio.create_task(service.judge(one, "video/mp4", "open it")) for one in films[1:]]
            while service._waiting.qsize() < 5:
                await asyncio.sleep(0.01)
        go.set()
        answers = await asyncio.gather(*asked)
        assert sizes == [1, 3, 2]
        said = Student.load(folder).score([decode_video(one) for one in films], ["open it"] * 6)
        np.testing.assert_allclose([told["total"] for _, told in answers], said.totals, atol=1e-4)

    asyncio.run(story())


def test_pixels_in_flight_are_bounded_until_a_video_is_judged(folder: Path) -> None:
    """Twelve small files that are large once decoded: one at a time, decoded or waiting for the judge."""

    async def story() -> None:
        one = 30 * 256 * 256
        service = replica(folder, largest_video_pixels=one, pixels_in_flight=int(1.5 * one))
        sound, most, decoded, go = service._judge, [], [], threading.Event()

        class Counted:
            name, version = "counted", 1

            def judge(self, requests: Any) -> Any:
                most.append(service._pixels.held)
                decoded.append(sum(request.frames.nbytes for request in requests))
                go.wait(20)
                return sound.judge(requests)

        service._judge = Counted()
        video = encode_video(np.zeros((30, 256, 256, 3), np.uint8), 5.0)
        assert len(video) < 10_000
        asked = [asyncio.create_task(service.judge(video, "video/mp4", "open it")) for _ in range(12)]
        while not decoded:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert service._pixels.held == one
        assert service._waiting.empty()  # a second one is not decoded while the first is judged
        go.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 12
        assert set(most) == {one}
        assert set(decoded) == {3 * one}
        assert service._pixels.held == 0
        larger = encode_video(np.zeros((31, 256, 256, 3), np.uint8), 5.0)
        status, told = await service.judge(larger, "video/mp4", "open it")
        assert (status, service._pixels.held) == (400, 0)
        assert "pixels allowed" in told["error"]

    asyncio.run(story())


def test_what_cannot_be_served_is_told_before_anything_starts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["judge", "serve", "--set", f"judge.weights={tmp_path}"]) == 2
    assert "no student here: student.safetensors is missing" in capsys.readouterr().err
    assert run(["judge", "serve", "--judge", "teacher", "--set", f"teacher.model={tmp_path}"]) == 2
    assert "config.json is missing" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["judge", "serve", "--port", str(port), "--set", f"judge.weights={folder}"]) == 2
    told = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in told
    assert told.count("\n") == 1


def test_a_config_files_arguments_are_checked(folder: Path) -> None:
    wanted = {"profile": "demo", "judge": "student", "overrides": [f"judge.weights={folder}"]}
    application(wanted)
    with pytest.raises(ConfigError, match="did you mean 'overrides'"):
        application({**wanted, "override": []})
    with pytest.raises(UserError, match="unknown profile 'demos'"):
        application({**wanted, "profile": "demos"})


# --- the teacher -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_teacher_is_served_with_its_rationale_under_a_prefix(ray_cluster: None, tmp_path: Path) -> None:
    from ray import serve

    from roboalign_ray.judge.teacher.small import make_small_teacher

    pytest.importorskip("xgrammar", reason="an untrained teacher must be held to its grammar")
    teacher = {
        "small": SmallTeacherConfig.tiny().model_dump(),
        "model": str(tmp_path / "model"),
        "frames": 4,
        "pixels": 1024,
        "reasoning": False,
        "precision": "float32",
        "samples": 2,
        "max_new_tokens": 300,
        "rationale_characters": 20,
        "prompt": {"opening": "", "rubric": "none", "closing": "", "describe_answer": False},
    }
    config = JobConfig.model_validate({"teacher": teacher, "cluster": {"teacher": {"num_cpus": 0.5}}})
    make_small_teacher(config.teacher, ["open it"], tmp_path / "model")
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        served = ingress_application(config, judge_application(config, "teacher"))
        serve.run(served, name=NAME, route_prefix="/teacher")
        status, body, _ = score(f"http://127.0.0.1:{port}/teacher", film(0, side=32), "open it")
        assert status == 200, body
        answer = json.loads(body)
        scores = np.array([answer["scores"][name] for name in names()])
        assert np.all((scores >= 0) & (scores <= maxima()))
        assert answer["total"] == pytest.approx(scores.sum())
        assert (answer["judge"], answer["version"]) == ("vlm/model", None)
        assert isinstance(answer["rationale"], str)
        found, told, _ = score(f"http://127.0.0.1:{port}/teacher", b"no video", "open it")
        assert found == 400
        assert "cannot be decoded" in json.loads(told)["error"]
    finally:
        serve.shutdown()
