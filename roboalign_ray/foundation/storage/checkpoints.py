"""Checkpoints that are complete or absent: directories written atomically, with a checksum for every file.

    root/
      step-00000100/   manifest.json  model.safetensors  …     a complete checkpoint
      step-00000200/   …
      .writing-…/                                              an interrupted write: ignored, deleted by a later one

A checkpoint is written beside its final place, flushed to disk, described by `manifest.json` and only then renamed. So
a `step-` directory is complete. If a file was damaged or the directory was renamed afterwards, `load` raises an error.
A checkpoint may come from an untrusted source: its manifest is checked before anything in it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.confined import UnsafeName, check_names, plain_files
from roboalign_ray.foundation.storage.files import flush, folder_fault

MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-([0-9]{8,18})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_MANIFEST = 64 << 20  # bytes
_TEMPORARY = ".writing-"
_ABANDONED_S = 3600.0
_CHUNK = 1 << 20


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or damaged; `where` names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        folder: the directory that holds its files.
        step: the number it was saved under.
        metadata: the writer's description of it (JSON types).
    """

    folder: Path
    step: int
    metadata: Mapping[str, Any]


def save(
    root: str | Path,
    step: int,
    write: Callable[[Path], None],
    *,
    metadata: Mapping[str, Any] | None = None,
    keep: int = 0,
) -> Path:
    """Write one checkpoint. It appears under its name complete, or not at all.

    Args:
        root: directory of checkpoints, created when absent.
        step: number of the checkpoint; an existing one of this number is replaced.
        write: writes the files into the directory that it receives.
        metadata: JSON types, stored in the manifest.
        keep: number of newest checkpoints to keep once this one is in place; 0 keeps all.

    Returns:
        The checkpoint's directory.

    Raises:
        ValueError: `step` or `keep` is negative, or `write` created a file called manifest.json.
    """
    if step < 0 or keep < 0:
        raise ValueError(f"step {step} and keep {keep} must not be negative")
    root = Path(root)
    with _draft(root) as temporary:
        write(temporary)
        _seal(temporary, step, metadata or {})
        final = root / f"step-{step:08d}"
        _replace(temporary, final)
    if keep:
        for old, _ in _listed(root)[:-keep]:
            if old != final:
                shutil.rmtree(old)
    return final


def adopt(root: str | Path, fetch: Callable[[Path], None]) -> Path:
    """Import a complete checkpoint. It appears under its name verified, or not at all.

    Args:
        root: directory of checkpoints, created when absent.
        fetch: writes the files and the manifest into the directory that it receives.

    Raises:
        CheckpointError: the fetched files are not a complete checkpoint.
    """
    with _draft(Path(root)) as temporary:
        fetch(temporary)
        final = Path(root) / f"step-{load(temporary).step:08d}"
        _replace(temporary, final)
    return final


def load(folder: str | Path) -> Checkpoint:
    """Verify every file of a checkpoint against its manifest, and its manifest's step against its name.

    Raises:
        CheckpointError: there is no manifest; a file is missing, has another size or other bytes, is not in the
            manifest, or is a link; or the directory is named after another step.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    named = _NAME.fullmatch(folder.name)
    if named and int(named[1]) != manifest["step"]:
        raise CheckpointError(
            f"holds the checkpoint of step {manifest['step']}: it was renamed or swapped",
            where=str(folder),
            remedy="restore its name, or use another checkpoint",
        )
    files: dict[str, dict[str, Any]] = manifest["files"]
    present = {path.relative_to(folder).as_posix() for path in _files(folder)}
    for name, entry in files.items():
        path = folder / name
        if name not in present:
            raise CheckpointError("is missing from the checkpoint", where=str(path), remedy=_REMEDY)
        if (size := path.stat().st_size) != entry["size"]:
            raise CheckpointError(
                f"has {size} bytes instead of {entry['size']}", where=str(path), remedy=_REMEDY
            )
        if _sha256(path) != entry["sha256"]:
            raise CheckpointError("does not match its checksum", where=str(path), remedy=_REMEDY)
    if extra := sorted(present - set(files)):
        raise CheckpointError(
            "is not part of the checkpoint", where=str(folder / extra[0]), remedy="remove it"
        )
    return Checkpoint(folder, manifest["step"], manifest["metadata"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest: its "step", "metadata", "digest", and "files" with size and checksum by name.

    Every name in it is checked to be a path below the checkpoint's directory.

    Raises:
        CheckpointError: the manifest is absent or damaged, or it names a file outside the directory.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        lacks = folder_fault(folder, f"holds no {MANIFEST}")
        raise CheckpointError(lacks, where=str(folder), remedy="give a checkpoint's directory")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise CheckpointError("is too large for a checkpoint's manifest", where=str(path), remedy=_REMEDY)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
        body = {key: manifest[key] for key in ("format", "step", "metadata", "files")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError("is not a checkpoint's manifest", where=str(path), remedy=_REMEDY) from None
    if body["format"] != _FORMAT:
        raise CheckpointError(f"has format {body['format']}, not {_FORMAT}", where=str(path))
    if set(manifest) != {*body, "digest"} or manifest["digest"] != _digest(body):
        raise CheckpointError("does not match its own digest", where=str(path), remedy=_REMEDY)
    _check_body(body, str(path))
    return manifest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys. JSON readers differ in which duplicate they use."""
    held = dict(pairs)
    if len(held) != len(pairs):
        raise ValueError("a key occurs twice")
    return held


def _check_body(body: Mapping[str, Any], where: str) -> None:
    """Check a manifest's values. Its digest is no proof of origin, since anybody can compute one.

    Raises:
        CheckpointError: a value has the wrong type, or a name is a path outside the checkpoint.
    """
    step, files = body["step"], body["files"]
    sound = (
        type(step) is int
        and 0 <= step < 10**18
        and isinstance(body["metadata"], dict)
        and isinstance(files, dict)
        and all(_is_entry(entry) for entry in files.values())
    )
    if not sound:
        raise CheckpointError("is not a checkpoint's manifest", where=where, remedy=_REMEDY)
    try:
        check_names([*files, MANIFEST], where)
    except UnsafeName as error:
        raise CheckpointError(error.what, where=where, remedy=error.remedy) from None


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"size", "sha256"}
        and type(entry["size"]) is int
        and entry["size"] >= 0
        and isinstance(entry["sha256"], str)
        and _DIGEST.fullmatch(entry["sha256"]) is not None
    )


def latest(root: str | Path) -> Path | None:
    """The directory of the newest complete checkpoint, unverified; None when there is none."""
    listed = _listed(Path(root))
    return listed[-1][0] if listed else None


def complete(root: str | Path) -> dict[int, Path]:
    """The directories of all complete checkpoints by step, oldest first, unverified."""
    return {step: path for path, step in _listed(Path(root))}


_REMEDY = "use an earlier checkpoint, or write it again"


@contextmanager
def _draft(root: Path) -> Iterator[Path]:
    """A temporary folder beside the checkpoints to write one in; deleted when writing fails."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    temporary = _temporary(root)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary(root: Path) -> Path:
    folder = root / f"{_TEMPORARY}{uuid.uuid4().hex}"
    folder.mkdir()
    return folder


def _seal(folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
    """Write the manifest with all checksums, and flush everything to disk."""
    if (folder / MANIFEST).exists():
        raise ValueError(f"a checkpoint cannot hold a file of its own called {MANIFEST}")
    files = {}
    for path in _files(folder):
        flush(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    body = {"format": _FORMAT, "step": step, "metadata": dict(metadata), "files": files}
    # The manifest protects the files, and its digest protects the manifest.
    text = json.dumps({**body, "digest": _digest(body)}, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    flush(folder / MANIFEST)
    for directory in [path for path in folder.rglob("*") if path.is_dir()] + [folder]:
        flush(directory)


def _replace(temporary: Path, final: Path) -> None:
    """Rename a draft to its final name. An older checkpoint of the same step is first moved aside, then deleted."""
    aside = None
    if final.exists():
        aside = _temporary(final.parent)
        final.rename(aside / final.name)
    temporary.rename(final)
    flush(final.parent)
    if aside:
        shutil.rmtree(aside)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _listed(root: Path) -> list[tuple[Path, int]]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    found = [(path, int(match[1])) for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(
        ((path, step) for path, step in found if (path / MANIFEST).is_file()), key=lambda item: item[1]
    )


def _files(folder: Path) -> list[Path]:
    """Every file below a checkpoint's directory except its manifest, in a fixed order.

    Raises:
        CheckpointError: an entry is a link or not a plain file.
    """
    try:
        return [path for path in plain_files(folder) if path != folder / MANIFEST]
    except UnsafeName as error:
        raise CheckpointError(error.what, where=error.where, remedy=error.remedy) from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sweep(root: Path) -> None:
    """Remove drafts of writers that died. Recent drafts stay, since a writer may still be using them."""
    for path in root.glob(f"{_TEMPORARY}*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)
