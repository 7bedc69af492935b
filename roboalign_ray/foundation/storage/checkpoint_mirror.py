"""Copies of checkpoints on any file system that pyarrow knows, such as S3: whole or not there, and checked on return.

    root/
      step-00000200.json                      the checkpoint's manifest: there once all its files are
      step-00000200-5f0c81d2a3b4c6e7/         its files, in a folder of their own named after the manifest's digest
        model/model.safetensors  …

Object stores cannot rename folders. So files are written under a name that nobody asks for, and the manifest, one
object, takes its place last. A step written again gets another folder: what the old manifest names stays until the new
one stands. A checkpoint that comes back may have been written by others: its manifest is checked before a file is
fetched, no file may grow beyond the size that it tells, and every file's checksum is verified before the checkpoint
takes its place.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import ReportedError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.checkpoints import MANIFEST, CheckpointError
from roboalign_ray.foundation.storage.files import require_room

_POINTER = re.compile(r"step-([0-9]{8,18})\.json")
_FOLDER = re.compile(r"step-[0-9]{8,18}-[0-9a-f]{16}")
_CHUNK = 1 << 20
Check = Callable[[Mapping[str, Any], str], None]


class CheckpointMirror:
    """One run's checkpoints elsewhere. One writer at a time.

    Args:
        filesystem: a `pyarrow.fs.FileSystem`.
        root: folder in it, made when absent.
        name: for messages.
    """

    def __init__(self, filesystem: Any, root: str, name: str = "") -> None:
        self._fs, self._root, self._name = filesystem, root.rstrip("/"), name or root

    @classmethod
    def at(cls, uri: str) -> CheckpointMirror:
        """The mirror at "s3://bucket/folder", "file:///folder" or whatever else pyarrow opens by URI.

        Raises:
            CheckpointError: no such file system, or it cannot be reached.
        """
        from pyarrow.fs import FileSystem

        with _told(uri):
            filesystem, root = FileSystem.from_uri(uri)
            return cls(filesystem, root, uri)

    def steps(self) -> list[int]:
        """Numbers of the checkpoints that are there, ascending, unverified.

        Raises:
            CheckpointError: the file system does not answer.
        """
        return sorted(int(match[1]) for name in self._names() if (match := _POINTER.fullmatch(name)))

    def push(self, folder: Path, keep: int = 0) -> None:
        """Copy a complete checkpoint; one of the same step is replaced.

        Args:
            folder: its directory, as `checkpoints.save` left it.
            keep: checkpoints kept there, the newest ones and this one; 0 keeps all.

        Raises:
            CheckpointError: `folder` is no checkpoint, or the copy could not be written.
        """
        manifest = checkpoints.read_manifest(folder)
        files = self._folder(manifest)
        with _told(self._name):
            for name in manifest["files"]:
                target = f"{files}/{name}"
                self._fs.create_dir(target.rpartition("/")[0], recursive=True)
                self._upload(folder / name, target)
            draft = f"{self._root}/.{uuid.uuid4().hex}"
            self._upload(folder / MANIFEST, draft)
            self._fs.move(draft, self._pointer(manifest["step"]))
        self._sweep(manifest["step"], keep)

    def manifest(self, step: int) -> dict[str, Any]:
        """A checkpoint's manifest, as `checkpoints.read_manifest` checks it.

        Raises:
            CheckpointError: it is not there, damaged, or of another step.
        """
        with tempfile.TemporaryDirectory() as folder, _told(self._name):
            return self._fetch_manifest(step, Path(folder))

    def pull(self, step: int, root: Path, check: Check | None = None) -> Path:
        """Fetch a checkpoint into a directory of checkpoints, where it appears whole and verified, or not at all.

        Args:
            step: its number.
            root: directory of checkpoints.
            check: is told the metadata, and where it is from, before a file is fetched; raises where it is not wanted.

        Returns:
            Its directory.

        Raises:
            CheckpointError: it is not there, not what was written, or of another step; or as `check`.
            HostError: there is no room for it.
        """

        def fetch(folder: Path) -> None:
            with _told(self._name):
                manifest = self._fetch_manifest(step, folder)
                if check is not None:
                    check(manifest["metadata"], self._where(step))
                require_room(folder, sum(entry["size"] for entry in manifest["files"].values()))
                for name, entry in manifest["files"].items():
                    self._download(f"{self._folder(manifest)}/{name}", folder / name, entry["size"])

        return checkpoints.adopt(root, fetch)

    def _fetch_manifest(self, step: int, folder: Path) -> dict[str, Any]:
        self._download(self._pointer(step), folder / MANIFEST, checkpoints.LARGEST_MANIFEST)
        manifest = checkpoints.read_manifest(folder)
        if manifest["step"] != step:
            raise CheckpointError(
                f"holds the checkpoint of step {manifest['step']}: it was renamed or swapped",
                where=self._where(step),
                remedy="remove that copy, or give it its own name back",
            )
        return manifest

    def _where(self, step: int) -> str:
        return f"{self._name}: step-{step:08d}.json"

    def _sweep(self, written: int, keep: int) -> None:
        """Old checkpoints, manifests first, and files that no manifest names."""
        if keep:
            with _told(self._name):
                for step in self.steps()[:-keep]:
                    if step != written:
                        self._fs.delete_file(self._pointer(step))
        named = {self._named_by(step) for step in self.steps()}
        with _told(self._name):
            for name in self._names():
                if _FOLDER.fullmatch(name) and name not in named:
                    self._fs.delete_dir(f"{self._root}/{name}")

    def _named_by(self, step: int) -> str:
        with _told(self._name), self._fs.open_input_stream(self._pointer(step)) as stream:
            return self._folder(json.loads(stream.read())).rpartition("/")[2]

    def _names(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with _told(self._name):
            found = self._fs.get_file_info(FileSelector(self._root, allow_not_found=True))
        return [info.base_name for info in found]

    def _pointer(self, step: int) -> str:
        return f"{self._root}/step-{step:08d}.json"

    def _folder(self, manifest: dict[str, Any]) -> str:
        return f"{self._root}/step-{manifest['step']:08d}-{manifest['digest'][:16]}"

    def _upload(self, source: Path, target: str) -> None:
        with source.open("rb") as file, self._fs.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, _CHUNK)

    def _download(self, source: str, target: Path, most: int) -> None:
        """Copy a file; one of more than `most` bytes is given up at that size."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open_input_stream(source) as stream, target.open("wb") as file:
            while chunk := stream.read(_CHUNK):
                if file.tell() + len(chunk) > most:
                    raise CheckpointError(f"is larger than the {most} bytes it should have", where=source)
                file.write(chunk)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """A file system's errors as one line that names where."""
    try:
        yield
    except ReportedError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own errors are among them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot be read or written ({reason})",
            where=name,
            remedy="check the address, its permissions and the network",
        ) from error
