"""One job at a time in a folder, whatever became of the job before."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roboalign_ray.foundation.failures import HostError, UserError
from roboalign_ray.foundation.storage import folder_lock as locks
from roboalign_ray.foundation.storage.folder_lock import LOCK, FolderInUse, folder_lock, store_lock

HOLD = """
import sys, time
from pathlib import Path
from roboalign_ray.foundation.storage import folder_lock
if len(sys.argv) > 2:
    def unsupported(*_):
        raise OSError(95, "Operation not supported")
    folder_lock.fcntl.flock = unsupported
with folder_lock.folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process that holds a folder until its input ends."""
    started: list[subprocess.Popen] = []

    def start(folder: Path, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(folder), *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def refuse_flock(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOTSUP) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", refused)


@pytest.mark.parametrize("flocks", [True, False])
def test_a_second_process_is_refused_in_one_line_until_the_first_ends(tmp_path, hold, monkeypatch, flocks):
    out = tmp_path / "out"
    process = hold(out, *([] if flocks else ["without"]))
    if not flocks:
        refuse_flock(monkeypatch)
    with pytest.raises(FolderInUse) as told, folder_lock(out):
        pass
    line = told.value.line()
    assert str(out) in line
    assert f"process {process.pid} on {socket.gethostname()}, since 20" in line
    assert "\n" not in line
    process.communicate("")
    assert not out.exists()  # nothing is left of a job that made nothing
    with folder_lock(out):
        pass


@pytest.mark.parametrize("flocks", [True, False])
def test_a_killed_owner_is_not_in_the_way(tmp_path, hold, monkeypatch, flocks):
    process = hold(tmp_path / "out", *([] if flocks else ["without"]))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "out" / LOCK).exists()
    if not flocks:
        refuse_flock(monkeypatch)
    with folder_lock(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "out" / LOCK).exists()


def test_without_flock_another_process_of_the_same_id_is_not_the_owner(tmp_path, monkeypatch):
    refuse_flock(monkeypatch)
    left(tmp_path, pid=os.getppid(), process="another boot 1")
    with folder_lock(tmp_path):
        pass


def left(folder: Path, **changes: object) -> Path:
    """The file of a job that is gone."""
    path = folder / LOCK
    path.touch()
    told = {"pid": 1, "host": socket.gethostname(), "started": "2026-01-01T00:00:00Z", "process": ""}
    path.write_text(json.dumps({**told, "inode": path.stat().st_ino, **changes}))
    return path


def test_another_hosts_job_counts_for_a_minute_after_its_last_sign(tmp_path):
    path = left(tmp_path, host="elsewhere\x1b[2J", pid=77)
    with (
        pytest.raises(FolderInUse, match=r"process 77 on elsewhere\[2J, .*remove .*\.job\.lock"),
        folder_lock(tmp_path),
    ):
        pass
    assert path.exists()
    os.utime(path, (time.time() - 61,) * 2)
    with folder_lock(tmp_path):
        pass


def test_a_copy_of_a_folder_in_use_is_free(tmp_path, hold):
    hold(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    with folder_lock(tmp_path / "copy"):
        pass
    left(tmp_path / "copy", host="elsewhere", inode=1)
    with folder_lock(tmp_path / "copy"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 3}', b"[" * 4000, b"\xff", b"null"])
def test_a_file_of_another_kind_is_not_in_the_way(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with folder_lock(tmp_path):
        pass


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be locked"), folder_lock(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_pipe_in_its_place_is_one_line(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(UserError, match="is no plain file"), folder_lock(tmp_path):
        pass
    assert (tmp_path / LOCK).is_fifo()


def test_a_full_disk_leaves_neither_lock_nor_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HostError, match="No space left"), folder_lock(tmp_path / "new" / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_thread_takes_it_again_and_another_does_not(tmp_path):
    caught: list[BaseException] = []

    def other() -> None:
        try:
            with folder_lock(tmp_path):
                pass
        except FolderInUse as error:
            caught.append(error)

    with folder_lock(tmp_path):
        with folder_lock(tmp_path / ".." / tmp_path.name):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK).exists()
    assert str(os.getpid()) in str(caught[0])
    assert list(tmp_path.iterdir()) == []


def test_many_processes_hold_it_one_at_a_time(tmp_path):
    program = """
import sys, time
from pathlib import Path
from roboalign_ray.foundation.storage.folder_lock import FolderInUse, folder_lock
folder, done = Path(sys.argv[1]), 0
while done < 20:
    try:
        with folder_lock(folder / "out"):
            (folder / "inside").mkdir()  # fails where another one is inside
            (folder / "inside").rmdir()
            done += 1
    except FolderInUse:
        time.sleep(0.001)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4


def test_what_was_made_for_the_lock_alone_goes_and_the_rest_stays(tmp_path):
    with folder_lock(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "kept").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]


def test_a_stores_lock_lies_beside_it(tmp_path, hold):
    with store_lock(tmp_path / "stores" / "mine"):
        assert [path.name for path in (tmp_path / "stores").iterdir()] == [".mine.lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def denied(tmp_path) -> Iterator[Path]:
    """A folder that this process may not write in."""
    folder = tmp_path / "denied"
    folder.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    before = os.geteuid()
    for path in (tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    if before == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", ["", "new/run"])
def test_a_folder_that_cannot_be_written_is_one_line(denied, name):
    with pytest.raises(HostError, match="Permission denied") as told, folder_lock(denied / name):
        pass
    assert str(denied) in told.value.line()


def test_a_file_in_the_folders_place_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file, not a folder"), folder_lock(path):
            pass


def test_a_full_disk_is_one_line_and_the_lock_is_free_again(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "pwrite", full)
        with pytest.raises(HostError, match="No space left"), folder_lock(tmp_path):
            pass
    with folder_lock(tmp_path):
        pass


def test_the_lock_is_flock(tmp_path):
    """So that the system frees it with its process."""
    with folder_lock(tmp_path), (tmp_path / LOCK).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
