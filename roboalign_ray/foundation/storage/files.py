"""Files and folders that are complete or absent: written beside their final place, renamed when complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from roboalign_ray.foundation.failures import HostError
from roboalign_ray.foundation.storage.confined import check_names, plain_files


def folder_fault(folder: Path, lacks: str) -> str:
    """What a message says of a folder that is not what was asked for: it does not exist, it is a file, or `lacks`."""
    if folder.is_dir():
        return lacks
    return "is a file, not a folder" if folder.exists() else "no such folder"


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A folder to write in. When the block ends without an error, it replaces what is at `path`."""
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
    """A file to write. When the block ends without an error, it replaces what is at `path`."""
    draft = _beside(path)
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def packed_folder(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder, by relative path: sent to nodes that share no file system.

    Raises:
        UnsafeName: an entry is a link or not a plain file, so its content may lie outside the folder.
    """
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in plain_files(folder)}


def unpack_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files that `packed_folder` returned.

    Raises:
        UnsafeName: a name points outside the folder; then no file is written.
    """
    for name in check_names(files, str(folder)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])


def require_room(folder: Path, size: int) -> None:
    """Check that a file system has room for a write.

    Args:
        folder: a folder on that file system; it need not exist yet.
        size: bytes to write.

    Raises:
        HostError: less than `size` is free.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise HostError(
            f"has {_size_text(free)} left on its disk, and {_size_text(size)} are to be written",
            where=str(folder),
            remedy="free space there, or choose another folder",
        )


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
