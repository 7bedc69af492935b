"""Files at a URI (s3://, gs://, hf:// and others) through pyarrow, or through fsspec where pyarrow has no file system.

Only the command line names a URI. Names inside a data set never lead to another place (`clips`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host

MOST_BYTES = 2 << 30  # of one file
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OF_PYARROW = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URI.

    Attributes:
        name: path relative to the folder that was listed.
        uri: its address.
        stamp: size and time of its last change.
    """

    name: str
    uri: str
    stamp: str


def is_uri(text: str) -> bool:
    """Whether a text is an address and not a path."""
    return _URI.match(text) is not None


def list_files(uri: str) -> list[RemoteFile]:
    """All files of a folder and of its folders, sorted by name; a file alone is a list of one.

    Raises:
        UserError: there is nothing at the address, or it cannot be read.
    """
    system, path = _opened(uri)
    try:
        info = system.get_file_info(path)
        if info.type == pafs.FileType.File:
            found, base = [info], info.path.rpartition("/")[0]
        elif info.type == pafs.FileType.Directory:
            found, base = system.get_file_info(pafs.FileSelector(info.path, recursive=True)), info.path
        else:
            raise UserError("there is no such file or folder", where=uri)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(uri, error) from error
    scheme = uri.partition("://")[0]
    files = [
        RemoteFile(file.path.removeprefix(base).lstrip("/"), f"{scheme}://{file.path}", _stamp(file))
        for file in found
        if file.type == pafs.FileType.File
    ]
    return sorted(files, key=lambda file: file.name)


def read_file(uri: str) -> bytes:
    """All bytes of a file.

    Raises:
        UserError: there is no such file, it cannot be read, or it is larger than `MOST_BYTES`.
    """
    system, path = _opened(uri)
    try:
        with system.open_input_file(path) as file:
            if file.size() > MOST_BYTES:
                raise UserError(f"the file is larger than {MOST_BYTES >> 30} GB", where=uri)
            return file.read()
    except FileNotFoundError as error:
        raise UserError("there is no such file", where=uri) from error
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(uri, error) from error


def _opened(uri: str) -> tuple[Any, str]:
    scheme, _, rest = uri.partition("://")
    try:
        system = _system(scheme, rest.partition("/")[0] if scheme in _OF_PYARROW else "")
        if scheme in _OF_PYARROW:
            return system, rest
        return system, system.handler.fs._strip_protocol(uri)
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise _unreadable(uri, error) from error


@cache
def _system(scheme: str, host: str) -> Any:
    if scheme in _OF_PYARROW:
        return pafs.FileSystem.from_uri(f"{scheme}://{host}/")[0]
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"{scheme}:// needs fsspec: pip install fsspec") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme)))


def _stamp(info: pafs.FileInfo) -> str:
    return f"{info.size}-{info.mtime_ns or 0}"


def _unreadable(uri: str, error: Exception) -> UserError:
    raise_if_host(error, where=uri)
    return UserError(f"cannot be read ({first_line(error)[:200]})", where=uri)
