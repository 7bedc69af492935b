"""Failures as values and as clear error messages.

There are three kinds. `UserError` is raised for bad input: it carries one line that says what is wrong, where, and
what to do. `HostError` is raised when the machine stops the work: a full disk, no memory, no permission. The command
line turns both into their line and exit code 2. `Failed` is a value: a sample, score or reply that could not be
produced. It travels next to successes and is never turned into a number.

`HostError` is no `UserError`: code that sets bad data aside (`except UserError`) never takes a full disk for bad data.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from roboalign_ray.foundation.secrets import masked

EXIT_BAD_INPUT = 2


class ReportedError(Exception):
    """An error reported in one line. Raise one of its subclasses.

    Args:
        what: what is wrong, as a short clause ("unknown key 'hiden_size'").
        where: the file, key, episode or option that is wrong.
        remedy: what to do about it.
        details: lines that are shown above the message, such as a table; usually empty.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", details: str = "") -> None:
        self.what, self.where, self.remedy, self.details = what, where, remedy, details
        super().__init__(self.line())

    def line(self) -> str:
        """The one line that is shown: secrets inside URIs are masked, control characters are escaped."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return printable(masked(" ".join((f"{text}; {self.remedy}" if self.remedy else text).split())))

    def __reduce__(self):
        # Exceptions cross process boundaries (Ray); keep the keyword-only parts through pickling.
        return (_rebuild, (type(self), self.what, self.where, self.remedy, self.details))


class UserError(ReportedError):
    """Bad input, reported in one line."""


class HostError(ReportedError):
    """The machine stopped the work: disk, memory, file handles, threads or permissions. The data is not at fault."""


def _rebuild(cls: type[ReportedError], what: str, where: str, remedy: str, details: str) -> ReportedError:
    return cls(what, where=where, remedy=remedy, details=details)


def printable(text: str) -> str:
    """Text that any terminal and file accepts: control characters and lone surrogates become escapes."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in safe)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type when the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def nearest_key(key: str, names: list[str], known: str = "known keys:") -> str:
    """A remedy that names the nearest of the known names, or lists them all, behind `known`, when none is near."""
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"{known} {', '.join(sorted(names))}"


_SPACE = "free space there, or choose another folder (TMPDIR sets the temporary one)"
_SIZE = "raise the limit of file sizes (ulimit -f)"
_HANDLES = "raise the limit of open files (ulimit -n)"
_MEMORY = "free memory, or ask for less at once"
_ACCESS = "allow access, or choose another place"
_DEVICE = "check the disk or the network file system"
_TASKS = "raise the limit of processes and threads (ulimit -u)"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SIZE,
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _TASKS,  # of fork and of thread creation
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EROFS: _ACCESS,
    errno.EIO: _DEVICE,
    errno.ENXIO: _DEVICE,
    errno.ENODEV: _DEVICE,
    errno.ESTALE: _DEVICE,
    errno.EREMOTEIO: _DEVICE,
}
# FFmpeg gives these codes for damaged files too (a short read is EIO, a nonsense size ENOMEM).
_AMBIGUOUS_IN_FFMPEG = {errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EPERM, errno.ENXIO, errno.ENODEV}
_RUST_CODE = re.compile(r"\(os error (\d+)\)")  # system errors in messages of Rust libraries (safetensors)


def host_error(error: BaseException | None, *, where: str = "") -> HostError | None:
    """The `HostError` for an exception that the machine caused; None for any other exception.

    These count, in the exception or one of its causes: full disks and quotas, no file handle or thread left, no
    memory, denied permissions and broken devices. A missing file does not count: it is an error in the data.

    Args:
        error: the exception that was caught.
        where: file or step to name when the exception does not name a file.
    """
    for cause in _chain(error):
        if isinstance(cause, HostError):
            return cause
        if (found := _code_and_text(cause)) is not None:
            code, text = found
            return HostError(text, where=_file_of(cause) or where, remedy=_REMEDIES[code])
    return None


def raise_if_host(error: BaseException, *, where: str = "") -> None:
    """Raise a `HostError` if the machine caused the exception. Call it before bad data is set aside.

    Raises:
        HostError: see `host_error`.
    """
    if (found := host_error(error, where=where)) is not None:
        raise found from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _code_and_text(error: BaseException) -> tuple[int, str] | None:
    """The system's error code, one of `_REMEDIES`, and its text."""
    in_ffmpeg = type(error).__module__.startswith("av.")
    if (isinstance(error, MemoryError) and not in_ffmpeg) or type(error).__name__ == "OutOfMemoryError":
        reason = first_line(error)
        return errno.ENOMEM, "out of memory" if reason == type(
            error
        ).__name__ else f"out of memory ({reason})"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return errno.EACCES, "no temporary folder can be written to"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return errno.EAGAIN, "cannot start a new thread"
    code = getattr(error, "errno", None)
    if code is None and (match := _RUST_CODE.search(str(error))):
        code = int(match[1])
    if code not in _REMEDIES or (in_ffmpeg and code in _AMBIGUOUS_IN_FFMPEG):
        return None
    return code, os.strerror(code)


def _file_of(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""


@dataclass(frozen=True)
class Failed:
    """A result that could not be produced. It is never converted to 0.0: readers count it and leave it out.

    Attributes:
        reason: one line for a log or a table.
        kind: a short machine-readable class, such as "decode", "timeout", "nan".
    """

    reason: str
    kind: str = "error"
