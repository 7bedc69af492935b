"""A command that is asked to end before its work begins: its own exit code, no traceback, no process left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tiny_job import make_tiny_job

from roboalign_ray.pipelines.align.job import interruptions
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.cluster.signals import (
    StartedProcesses,
    deferred,
    ending,
    exit_code,
    handled,
    interrupt,
)

WAIT_S = 120
# Names of processes whose presence says how far the start has come.
MOMENTS = {"Ray starts": "gcs_server", "agents start": "raylet", "workers load": "ray::"}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    config = make_tiny_job(folder)
    (folder / "job.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return folder / "job.yaml"


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def below(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def title(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:
        return ""


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def interrupted() -> Iterator[None]:
    with pytest.raises(KeyboardInterrupt):
        yield


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "Ray starts"), (signal.SIGINT, "agents start"), (signal.SIGTERM, "workers load")],
)
def test_a_job_that_is_asked_to_end_while_it_starts_ends_cleanly(job: Path, tmp_path: Path, number, moment):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "roboalign_ray.pipelines.cli.main",
        "align",
        str(job),
        "--out",
        str(out),
        "--quiet",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    seen: set[psutil.Process] = set()
    watched = psutil.Process(process.pid)

    def reached() -> bool:
        seen.update(below(watched))
        return process.poll() is not None or any(MOMENTS[moment] in title(child) for child in seen)

    wait_for(reached)
    os.kill(process.pid, number)
    while process.poll() is None:
        seen.update(below(watched))
        time.sleep(0.01)
    written, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + number, errors
    for sign in ("Traceback", "received at time", "Exception ignored", "Fatal"):
        assert sign not in written + errors
    assert [title(child) for child in seen if alive(child)] == []
    assert not (out / ".job.lock").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["/somewhere/bin/roboalign", "-m"])
def test_a_command_that_is_asked_to_end_while_it_imports_says_nothing(number, name):
    program = f"import os, sys; sys.argv[:] = [{name!r}]; import roboalign_ray.pipelines; "
    program += f"os.kill(os.getpid(), {int(number)})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_importing_the_package_elsewhere_changes_no_handler():
    program = """
import signal
import roboalign_ray.pipelines
print(signal.getsignal(2) is signal.default_int_handler, signal.getsignal(15))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.split() == ["True", "0"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_returns_the_signals_code(monkeypatch, number, code):
    from roboalign_ray.pipelines.evaluate import best_of_n_study as judge_select

    def asked(*_args, **_kwargs):
        os.kill(os.getpid(), number)
        time.sleep(WAIT_S)

    monkeypatch.setattr(judge_select, "run_select", asked)
    with handled(interrupt):
        assert run(["judge", "select"]) == code


def test_an_earlier_commands_signal_does_not_count(monkeypatch):
    with interrupted():
        interrupt(signal.SIGTERM)
    monkeypatch.setattr("roboalign_ray.pipelines.cli.main.app", asked_by_nobody)
    assert run([]) == 130


def asked_by_nobody(**_more):
    raise KeyboardInterrupt


def test_signals_wait_for_a_block_and_the_second_one_does_not():
    steps = []
    with interrupted(), handled(interrupt), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("whole")
    assert exit_code() == 143
    with interrupted(), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("cut short")
    assert steps == ["whole"]
    assert exit_code() == 130


def test_handlers_are_set_again_and_those_of_others_are_left():
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with interrupted(), ending():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(WAIT_S)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        came = []
        signal.signal(signal.SIGTERM, lambda *_: came.append(True))
        with ending():
            os.kill(os.getpid(), signal.SIGTERM)
        assert came
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_loop_that_was_asked_by_sigterm_ends_with_its_code():
    with interrupted(), interruptions() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        raise KeyboardInterrupt
    assert exit_code() == 143


def test_processes_that_outlive_their_parents_are_ended():
    started = StartedProcesses()
    child = subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '600']); input()"],
        stdin=subprocess.PIPE,
    )
    orphan: set[psutil.Process] = set()
    wait_for(lambda: bool(orphan.update(below(psutil.Process(child.pid))) or orphan))
    started.end(child.kill)
    child.wait()
    assert not any(alive(process) for process in orphan)


def test_processes_from_before_are_left():
    before = subprocess.Popen(["sleep", "600"])
    try:
        started = StartedProcesses()
        started.end(lambda: None)
        assert before.poll() is None
    finally:
        before.kill()
        before.wait()
