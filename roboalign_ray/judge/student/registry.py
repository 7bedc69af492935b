"""Published students by version: each whole or not there, none ever replaced, all of them loadable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.files import unpack_folder
from roboalign_ray.judge.student.model import Student

_KEY = "key"


class StudentRegistry:
    """A folder of student versions, numbered from 1.

    Args:
        folder: made by the first publication.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def publish(self, student: Student, about: Mapping[str, Any] | None = None, *, key: str = "") -> int:
        """Make a student the newest version and return its number; readers see all of it or nothing.

        One process publishes.

        Args:
            student: its `version` becomes the number.
            about: JSON types kept beside it, such as its agreement.
            key: names what led to it, such as the relabelling round; a second publication under the newest version's
                key is the first one repeated after a restart, and changes nothing. "" is never a repetition.
        """
        newest = self.newest()
        if newest is not None and key and self.about(newest).get(_KEY) == key:
            student.version = newest
            return newest
        before = student.version
        student.version = (newest or 0) + 1
        try:
            checkpoints.save(
                self.folder, student.version, student.save, metadata={**(about or {}), _KEY: key}
            )
        except BaseException:
            student.version = before
            raise
        return student.version

    def adopt(self, version: int, files: Mapping[str, bytes]) -> None:
        """Take in a version that was published elsewhere, unless it is here.

        Args:
            version: its number.
            files: its folder, as `packed_folder` gives it.

        Raises:
            UserError: they are not a whole version of that number, or another one has it here.
        """
        here = self.path(version) / checkpoints.MANIFEST
        if here.is_file():
            if here.read_bytes() != files.get(checkpoints.MANIFEST):
                raise UserError(
                    f"student version {version} is another one here than where it was kept",
                    where=str(self.folder),
                    remedy="go on in another folder",
                )
            return

        def unpack(folder: Path) -> None:
            unpack_folder(files, folder)
            if (found := checkpoints.read_manifest(folder)["step"]) != version:
                raise UserError(
                    f"the files are those of student version {found}, not {version}", where=str(self.folder)
                )

        checkpoints.adopt(self.folder, unpack)

    def newest(self) -> int | None:
        """The newest version's number; None before the first."""
        folder = checkpoints.latest(self.folder)
        return int(folder.name.removeprefix("step-")) if folder else None

    def find(self, key: str) -> int | None:
        """The version that was published under a key; None where there is none."""
        numbers = range(self.newest() or 0, 0, -1)
        return next((n for n in numbers if self.path(n).is_dir() and self.about(n).get(_KEY) == key), None)

    def load(self, version: int | None = None) -> Student:
        """A version, the newest by default, its files verified.

        Raises:
            UserError: there is no such version, or its files are damaged.
        """
        wanted = self.newest() if version is None else version
        if wanted is None:
            raise UserError(
                "no student has been published", where=str(self.folder), remedy="run 'roboalign distill'"
            )
        return Student.load(self._verified(wanted).folder)

    def about(self, version: int) -> Mapping[str, Any]:
        """What was kept beside a version.

        Raises:
            UserError: as `load`.
        """
        return self._verified(version).metadata

    def path(self, version: int) -> Path:
        """The folder of a version, which `Student.load` takes."""
        return self.folder / f"step-{version:08d}"

    def _verified(self, version: int) -> checkpoints.Checkpoint:
        if not self.path(version).is_dir():
            raise UserError(
                f"no student of version {version}",
                where=str(self.folder),
                remedy=f"the newest is {self.newest() or 'none'}",
            )
        return checkpoints.load(self.path(version))
