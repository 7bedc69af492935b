"""Files and folders that are whole or not there: written beside their place, renamed when complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from roboalign_ray.foundation.failures import HostError
from roboalign_ray.foundation.storage.confined import check_names, plain_files


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A folder to write in that takes its final name, replacing what is there, only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(path)
    folder.mkdir()
    try:
        yield folder
        replaced = path.parent / f"{folder.name}.old"
        if path.exists():
            os.rename(path, replaced)
        os.rename(folder, path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that takes its final name, replacing what is there, only when the block ends well."""
    draft = _beside(path)
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def packed_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path: what travels where no file system is shared.

    Raises:
        UnsafeName: something in it is a link or no plain file: its content may lie anywhere.
    """
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in plain_files(folder)}


def unpack_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what `packed_folder` gave.

    Raises:
        UnsafeName: a name leads out of the folder; nothing is then written.
    """
    for name in check_names(files, str(folder)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])


def require_room(folder: Path, size: int) -> None:
    """Whether a file system has room for what is about to be written.

    Args:
        folder: on it; need not exist yet.
        size: bytes.

    Raises:
        HostError: it has less than that.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise HostError(
            f"has {_shown(free)} left on its disk, and {_shown(size)} are to be written",
            where=str(folder),
            remedy="free space there, or choose another folder",
        )


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def flush(path: Path) -> None:
    """A file's bytes, or a folder's entries, out to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
