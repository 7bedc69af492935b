"""One job at a time in a folder: a lock that names its owner, and that nobody has to remove after a crash.

    runs/first/.job.lock        of a run's folder, which is thereby known to be writable
    stores/.mine.lock           of a store, which is written beside its place and replaced whole

The lock is `flock`: the system frees it when its process ends, however that happens. The file tells a second job who
holds it: {"pid", "host", "started", "inode", "process"}.

Network file systems: where `flock` is not supported, the file alone counts. It is taken over when its process on this
host is gone, or when it names another host and was not renewed for a minute; a job renews it every 15 s. The same
minute is waited for where `flock` works but the file names another host, since some file systems lock within one host
only. A copy of a folder that is in use is not locked: its file tells the inode of the first one.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import inspect
import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from roboalign_ray.foundation.failures import HostError, UserError, raise_if_host

LOCK = ".job.lock"
_RENEWED_S, _STALE_S = 15.0, 60.0
_SETTLED_S = 0.2  # two jobs that write the file at once, without flock: the last one to do so has it
_LARGEST = 4096
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_REMEDY = "wait until it ends, or choose another folder"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class FolderInUse(UserError):
    """Another job works in a folder; the line names its process."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: process id on the host.
        host: its name.
        started: when the lock was taken, ISO 8601 in UTC.
        inode: of the lock's file; a copy of the file has another one.
        process: what tells the process from a later one of the same id; "" where the system does not say.
    """

    pid: int
    host: str
    started: str
    inode: int
    process: str


@dataclass
class _Held:
    thread: int
    depth: int


class _FolderGone(Exception):
    """The folder of the lock was removed after it was made."""


_ATTEMPTS = 100
_held: dict[str, _Held] = {}
_held_lock = threading.Lock()


def one_job(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function with an argument `out`, the folder that it works in: refused where another job does."""
    return _locking(function, folder_lock)


def one_writer(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function with an argument `out`, the store that it writes: refused where another job writes that."""
    return _locking(function, store_lock)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Work in a folder alone. It is made where absent, and is known to be writable within the block.

    The thread that holds it may take it again.

    Raises:
        FolderInUse: another job, or another thread of this one, has it.
        HostError: the folder cannot be written.
        UserError: it is no folder.
    """
    with _lock(folder, folder / LOCK, folder):
        yield


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Write a store alone; the lock lies beside it. As `folder_lock`."""
    with _lock(store, store.parent / f".{store.name}.lock", store.parent):
        yield


def _locking(
    function: Callable[Arguments, Result], lock: Callable[[Path], AbstractContextManager[None]]
) -> Callable[Arguments, Result]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def locked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        out = signature.bind(*args, **kwargs).arguments["out"]
        with lock(Path(out).absolute()):
            return function(*args, **kwargs)

    return locked


@contextmanager
def _lock(shown: Path, path: Path, folder: Path) -> Iterator[None]:
    key = os.path.realpath(path)
    if _taken_again(key, shown):
        try:
            yield
        finally:
            _given_back(key)
        return
    descriptor: int | None = None
    made: list[Path] = []
    try:
        descriptor = _opened(folder, path, shown, made)
        with _renewed(descriptor):
            yield
    finally:
        _given_back(key)
        if descriptor is not None:
            _removed(path, descriptor)
        for above in made:  # what was made for the lock alone
            with suppress(OSError):
                above.rmdir()


def _taken_again(key: str, shown: Path) -> bool:
    """Whether this thread has the lock already; notes that it has it from now on."""
    me = threading.get_ident()
    with _held_lock:
        held = _held.setdefault(key, _Held(me, 0))
        if held.thread != me:
            raise FolderInUse(
                f"is in use by another thread of this process ({os.getpid()})",
                where=str(shown),
                remedy=_REMEDY,
            )
        held.depth += 1
        return held.depth > 1


def _given_back(key: str) -> None:
    with _held_lock:
        held = _held[key]
        held.depth -= 1
        if not held.depth:
            del _held[key]


def _made(folder: Path) -> list[Path]:
    """Make a folder; those that were made, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise UserError("is a file, not a folder", where=str(file), remedy="choose another place") from error
    except OSError as error:
        raise_if_host(error, where=str(folder))
        raise UserError(
            f"cannot be made ({error.strerror})", where=str(folder), remedy="choose another place"
        ) from error
    return missing


def _opened(folder: Path, path: Path, shown: Path, made: list[Path]) -> int:
    """`_taken` in a folder that is made where absent; adds to `made` what was made."""
    for _ in range(_ATTEMPTS):
        made += _made(folder)
        try:
            return _taken(path, shown)
        except _FolderGone:  # another job ended just now, and its folder with it
            continue
    raise UserError(
        "cannot be locked: it is removed again and again", where=str(path), remedy="choose another place"
    )


def _taken(path: Path, shown: Path) -> int:
    """An open file with the lock on it, which names this process."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError as error:
            raise _FolderGone from error
        except OSError as error:
            raise_if_host(error, where=str(path))
            raise UserError(
                f"cannot be locked ({error.strerror})", where=str(path), remedy="choose another place"
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(
                    "is no plain file", where=str(path), remedy="remove it, or choose another place"
                )
            if _try(descriptor, path, shown):
                return descriptor
        except HostError:  # the file is locked and could not be written: nothing of it stays
            _removed(path, descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one before removed its file meanwhile


def _try(descriptor: int, path: Path, shown: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks = True
    except BlockingIOError:
        raise _in_use(_owner(descriptor), shown, path) from None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise_if_host(error, where=str(path))
            raise
        locks = False
    if not _is_at(descriptor, path):
        return False
    owner = _owner(descriptor)
    if owner is not None and _lives(owner, descriptor, path, locks):
        raise _in_use(owner, shown, path)
    me = _me(os.fstat(descriptor).st_ino)
    _write(descriptor, me, path)
    if not locks:
        time.sleep(_SETTLED_S)
        if (now := _owner(descriptor)) != me:
            raise _in_use(now, shown, path)
    return True


def _lives(owner: Owner, descriptor: int, path: Path, locks: bool) -> bool:
    """Whether a lock's owner may still be at work although this process could lock the file."""
    status = os.fstat(descriptor)
    if owner.inode != status.st_ino:
        return False  # the file was copied along with its folder
    if owner.host == socket.gethostname():
        return not locks and _process(owner.pid) is not None and _process(owner.pid) == owner.process
    with tempfile.TemporaryFile(dir=path.parent) as probe:  # the file system's own clock
        return os.fstat(probe.fileno()).st_mtime - status.st_mtime < _STALE_S


def _me(inode: int) -> Owner:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Owner(os.getpid(), socket.gethostname(), started, inode, _process(os.getpid()) or "")


def _process(pid: int) -> str | None:
    """What tells a process from all others that had its id on this host; None where there is none of that id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""


def _owner(descriptor: int) -> Owner | None:
    """Who wrote the file; None where it is empty or says something else."""
    try:
        told = json.loads(os.pread(descriptor, _LARGEST, 0))
        owner = Owner(**told)
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = (int, str, str, int, str)
    sound = all(type(value) is kind for value, kind in zip(asdict(owner).values(), kinds, strict=True))
    return owner if sound and owner.pid > 0 else None


def _write(descriptor: int, owner: Owner, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(asdict(owner)) + "\n").encode(), 0)
    except OSError as error:
        raise_if_host(error, where=str(path))
        raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _removed(path: Path, descriptor: int) -> None:
    """Remove the file while it is locked, then let go: the next job makes its own."""
    with suppress(OSError):
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


@contextmanager
def _renewed(descriptor: int) -> Iterator[None]:
    """Tell other hosts again and again that the owner lives."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEWED_S):
            with suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=renew, name="folder lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_use(owner: Owner | None, shown: Path, path: Path) -> FolderInUse:
    if owner is None:
        return FolderInUse("is in use by another job", where=str(shown), remedy=_REMEDY)
    elsewhere = owner.host != socket.gethostname()
    return FolderInUse(
        f"is in use by another job (process {owner.pid} on {_plain(owner.host)}, since {_plain(owner.started)})",
        where=str(shown),
        remedy=f"{_REMEDY}; if that host is gone, remove {path}" if elsewhere else _REMEDY,
    )


def _plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:100]
