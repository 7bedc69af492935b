"""Files and folders that are whole or not there: written beside their place, renamed when complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


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
    """Every file of a folder by its relative path: what travels where no file system is shared."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what `packed_folder` gave."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def flush(path: Path) -> None:
    """A file's bytes, or a folder's entries, out to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
