"""One job at a time in a folder: a lock that names its owner and needs no manual removal after a crash.

    runs/first/.job.lock        lock of a run's folder; creating it also shows that the folder is writable
    stores/.mine.lock           lock of a store, which is written beside its final place and replaced as a whole

The lock is `flock`: the system frees it when its process ends for any reason. The file names the owner for other
jobs: {"pid", "host", "started", "inode", "process"}.

Network file systems: where `flock` is not supported, only the file counts. Another job takes it over when its process
on this host has ended, or when it names another host and was not renewed for a minute; a job renews it every 15 s. The
same minute applies where `flock` works but the file names another host, since some file systems lock only within one
host. A copy of a folder in use is not locked: the inode in the copied file is that of the original file.
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
_SETTLED_S = 0.2  # without flock, two jobs may write the file at once: the last writer gets the lock
_LARGEST = 4096
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_REMEDY = "wait until it ends, or choose another folder"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class FolderInUse(UserError):
    """Another job uses the folder; the message names its process."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        pid: process id on the host.
        host: host name.
        started: when the lock was taken, ISO 8601 in UTC.
        inode: inode of the lock file; a copy of the file has another inode.
        process: distinguishes the process from a later one with the same id; "" where the system cannot tell.
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
    """The folder of the lock was removed after it was created."""


_ATTEMPTS = 100
_held: dict[str, _Held] = {}
_held_lock = threading.Lock()


def one_job(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function with an argument `out`, its folder: the call is refused while another job uses it."""
    return _locking(function, folder_lock)


def one_writer(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function with an argument `out`, its store: the call is refused while another job writes it."""
    return _locking(function, store_lock)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for the block. The folder is created when absent and is known to be writable.

    The thread that holds the lock may take it again.

    Raises:
        FolderInUse: another job, or another thread of this process, holds the lock.
        HostError: the folder cannot be written.
        UserError: the path is not a folder.
    """
    with _lock(folder, folder / LOCK, folder):
        yield


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Lock a store for writing, like `folder_lock`; the lock file lies beside the store."""
    with _lock(store, store.parent / f".{store.name}.lock", store.parent):
        yield


def _locking(
    function: Callable[Arguments, Result], lock: Callable[[Path], AbstractContextManager[None]]
) -> Callable[Arguments, Result]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def locked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        out = signature.bind(*args, **kwargs).arguments["out"]
        if out is None:  # nothing is written
            return function(*args, **kwargs)
        with lock(Path(out).absolute()):
            return function(*args, **kwargs)

    return locked


@contextmanager
def _lock(shown: Path, path: Path, folder: Path) -> Iterator[None]:
    key = os.path.realpath(path)
    if _acquire_again(key, shown):
        try:
            yield
        finally:
            _release(key)
        return
    descriptor: int | None = None
    made: list[Path] = []
    try:
        descriptor = _lock_in_folder(folder, path, shown, made)
        with _renewed(descriptor):
            yield
    finally:
        _release(key)
        if descriptor is not None:
            _remove(path, descriptor)
        for above in made:  # folders created only for the lock
            with suppress(OSError):
                above.rmdir()


def _acquire_again(key: str, shown: Path) -> bool:
    """Record that this thread holds the lock. Return whether it held the lock before."""
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


def _release(key: str) -> None:
    with _held_lock:
        held = _held[key]
        held.depth -= 1
        if not held.depth:
            del _held[key]


def _create_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents. Return the folders that were created, the innermost first."""
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


def _lock_in_folder(folder: Path, path: Path, shown: Path, made: list[Path]) -> int:
    """Call `_lock_file` in a folder that is created when absent; append the created folders to `made`."""
    for _ in range(_ATTEMPTS):
        made += _create_folder(folder)
        try:
            return _lock_file(path, shown)
        except _FolderGone:  # another job just ended and removed its folder
            continue
    raise UserError(
        "cannot be locked: it is removed repeatedly", where=str(path), remedy="choose another place"
    )


def _lock_file(path: Path, shown: Path) -> int:
    """Open and lock the lock file and write this process into it. Return the file descriptor."""
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
        except HostError:  # the file is locked but could not be written: remove it
            _remove(path, descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous owner has removed the file since it was opened


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
    """Whether a lock's owner may still be running although this process could lock the file."""
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
    """A text that is unique among all processes that ever had this id on this host; None when none has it now."""
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
    """The owner that the file names; None when the file is empty or invalid."""
    try:
        owner = Owner(**json.loads(os.pread(descriptor, _LARGEST, 0)))
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


def _remove(path: Path, descriptor: int) -> None:
    """Remove the file while it is locked, then close it; the next job creates its own file."""
    with suppress(OSError):
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


@contextmanager
def _renewed(descriptor: int) -> Iterator[None]:
    """Renew the file's time regularly, so that other hosts see that the owner is running."""
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
