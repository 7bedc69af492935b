"""Copies of checkpoints on any file system that pyarrow supports, such as S3: complete or absent, verified on download.

    root/
      step-00000200.json                      the checkpoint's manifest: written after all its files
      step-00000200-5f0c81d2a3b4c6e7/         its files, in a folder named after the manifest's digest
        model/model.safetensors  …

Object stores cannot rename folders. So the files are written to a folder that no reader looks up, and the manifest, a
single object, is put in place last. When a step is written again, it gets another folder: the files of the old
manifest stay until the new manifest is in place. A downloaded checkpoint is not trusted: its manifest is checked before
any file is fetched, no file may exceed the size in the manifest, and every checksum is verified before the checkpoint
gets its final name.
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
    """One run's checkpoints on another file system. Only one process may write at a time.

    Args:
        filesystem: a `pyarrow.fs.FileSystem`.
        root: folder in it, created when absent.
        name: used in messages.
    """

    def __init__(self, filesystem: Any, root: str, name: str = "") -> None:
        self._fs, self._root, self._name = filesystem, root.rstrip("/"), name or root

    @classmethod
    def at(cls, uri: str) -> CheckpointMirror:
        """The mirror at "s3://bucket/folder", "file:///folder" or any other URI that pyarrow can open.

        Raises:
            CheckpointError: there is no such file system, or it cannot be reached.
        """
        from pyarrow.fs import FileSystem

        with _file_system_errors(uri):
            filesystem, root = FileSystem.from_uri(uri)
            return cls(filesystem, root, uri)

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the mirror, ascending; the checkpoints are not verified.

        Raises:
            CheckpointError: the file system does not answer.
        """
        return sorted(int(match[1]) for name in self._names() if (match := _POINTER.fullmatch(name)))

    def push(self, folder: Path, keep: int = 0) -> None:
        """Copy a complete checkpoint. A checkpoint of the same step is replaced.

        Args:
            folder: its directory, as written by `checkpoints.save`.
            keep: number of newest checkpoints to keep in the mirror, besides this one; 0 keeps all.

        Raises:
            CheckpointError: `folder` is no checkpoint, or the copy could not be written.
        """
        manifest = checkpoints.read_manifest(folder)
        files = self._folder(manifest)
        with _file_system_errors(self._name):
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
            CheckpointError: the manifest is absent, damaged, or of another step.
        """
        with tempfile.TemporaryDirectory() as folder, _file_system_errors(self._name):
            return self._fetch_manifest(step, Path(folder))

    def pull(self, step: int, root: Path, check: Check | None = None) -> Path:
        """Fetch a checkpoint into a directory of checkpoints. It appears there complete and verified, or not at all.

        Args:
            step: its number.
            root: directory of checkpoints.
            check: called with the metadata and its location before any file is fetched; it raises to refuse.

        Returns:
            Its directory.

        Raises:
            CheckpointError: the checkpoint is absent, damaged, or of another step; or an error of `check`.
            HostError: the disk has no room for it.
        """

        def fetch(folder: Path) -> None:
            with _file_system_errors(self._name):
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
                remedy="remove that copy, or restore its name",
            )
        return manifest

    def _where(self, step: int) -> str:
        return f"{self._name}: step-{step:08d}.json"

    def _sweep(self, written: int, keep: int) -> None:
        """Delete old checkpoints, manifests first, and files that no manifest names."""
        if keep:
            with _file_system_errors(self._name):
                for step in self.steps()[:-keep]:
                    if step != written:
                        self._fs.delete_file(self._pointer(step))
        named = {self._folder_name(step) for step in self.steps()}
        with _file_system_errors(self._name):
            for name in self._names():
                if _FOLDER.fullmatch(name) and name not in named:
                    self._fs.delete_dir(f"{self._root}/{name}")

    def _folder_name(self, step: int) -> str:
        with _file_system_errors(self._name), self._fs.open_input_stream(self._pointer(step)) as stream:
            return self._folder(json.loads(stream.read())).rpartition("/")[2]

    def _names(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with _file_system_errors(self._name):
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
        """Copy a file. Stop with an error when it has more than `most` bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open_input_stream(source) as stream, target.open("wb") as file:
            while chunk := stream.read(_CHUNK):
                if file.tell() + len(chunk) > most:
                    raise CheckpointError(f"is larger than the {most} bytes it should have", where=source)
                file.write(chunk)


@contextmanager
def _file_system_errors(name: str) -> Iterator[None]:
    """Turn the errors of a file system into one line that names the mirror."""
    try:
        yield
    except ReportedError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are subclasses of these
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot be read or written ({reason})",
            where=name,
            remedy="check the address, its permissions and the network",
        ) from error
