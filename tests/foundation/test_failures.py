"""Which exceptions mean that the machine stopped the work, and which mean bad data."""

from __future__ import annotations

import errno
import os
import pickle

import av
import pyarrow as pa
import pytest

from roboalign_ray.foundation.failures import HostError, UserError, host_error, raise_if_host

OF_THE_HOST = [
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
]
OF_THE_DATA = [errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP]


@pytest.mark.parametrize("code", OF_THE_HOST, ids=errno.errorcode.get)
def test_system_errors_of_the_host_are_told_with_file_and_remedy(code):
    found = host_error(OSError(code, os.strerror(code), "runs/a.bin"))
    assert found is not None
    assert found.line().startswith(f"runs/a.bin: {os.strerror(code)}; ")


@pytest.mark.parametrize("code", OF_THE_DATA, ids=errno.errorcode.get)
def test_system_errors_of_the_data_are_none(code):
    assert host_error(OSError(code, os.strerror(code), "runs/a.bin")) is None


@pytest.mark.parametrize(
    ("error", "clue"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 9.31 GiB"), "9.31 GiB"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "malloc of size 64"),
        (RuntimeError("can't start new thread"), "cannot start a new thread"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "CUDA out of memory"),
    ],
)
def test_other_exceptions_of_the_host_are_known(error, clue):
    found = host_error(error, where="the job")
    assert found is not None
    assert found.where == "the job"
    assert clue in found.what


def test_a_cause_counts_and_a_bug_does_not():
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert host_error(wrapped) is not None
    assert host_error(ZeroDivisionError("division by zero")) is None
    assert host_error(None) is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.EIO, False), (errno.ENOMEM, False), (errno.ENOSPC, True), (errno.EMFILE, True)],
)
def test_codes_that_ffmpeg_gives_for_damaged_files_too_are_not_taken_for_the_host(code, expected):
    with pytest.raises(av.FFmpegError) as raised:
        av.error.err_check(-code)
    assert (host_error(raised.value) is not None) is expected


def test_a_handler_of_bad_input_lets_a_failure_of_the_host_pass():
    def set_aside():
        try:
            raise_if_host(OSError(errno.EMFILE, "Too many open files"), where="videos/a.mp4")
        except UserError:
            return "set aside"

    with pytest.raises(HostError, match=r"videos/a\.mp4: Too many open files; raise the limit"):
        set_aside()


def test_both_kinds_cross_a_process_boundary():
    for error in (HostError("full", where="tmp", remedy="free space"), UserError("bad", details="table")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.line(), copy.details) == (type(error), error.line(), error.details)
