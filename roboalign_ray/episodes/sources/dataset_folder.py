"""The folder of a dataset: files that its tables name must be inside it.

A dataset may be untrusted, so a name in its metadata is checked before a file is opened. A symbolic link may lead to
another file of the folder. There is one exception: in a Hugging Face cache, every file of a dataset is a link from
`datasets--<name>/snapshots/<revision>/` into `datasets--<name>/blobs/`, so links there into that `blobs` folder are
allowed too.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host

_HUB_REPOSITORY = re.compile(r"(datasets|models|spaces)--.+")
_LONGEST_NAME = 1024
_NUMBER_FORMAT = re.compile(r"0?[0-9]{0,2}d?")  # {episode_index:06d}: a number and at most 99 digits


class DatasetFolder:
    """A dataset's folder.

    Args:
        root: the folder that the user named; it may itself be a link.

    Attributes:
        root: as given.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        real = root.resolve()
        self._allowed = [real, *_hub_blobs(real)]

    def file(self, name: str | Path, what: str = "file") -> Path:
        """The path of a file, from its name relative to the folder.

        Args:
            name: name in the dataset's metadata.
            what: kind of file, for errors.

        Raises:
            EpisodeError: the name leads out of the folder, or there is no such file.
            HostError: the file system denies access.
        """
        path = self._inside(str(name), what)
        try:
            if path.is_file():
                return path
        except (OSError, ValueError) as error:
            raise_if_host(error, where=str(path))
        raise EpisodeError(f"no such {what}", where=str(name))

    def _inside(self, name: str, what: str) -> Path:
        if not name or "\0" in name or len(name) > _LONGEST_NAME:
            raise EpisodeError(f"{name[:40]!r} is no name of a {what}", where=str(self.root))
        # Backslashes separate folders only on Windows; a name with '..' between them is refused everywhere.
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in parts:
            raise EpisodeError(
                f"the path of a {what} leads out of the dataset's folder",
                where=name,
                remedy="paths in a dataset are relative to its folder",
            )
        path = self.root / name
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a part that is too long
            raise_if_host(error, where=name)
            raise EpisodeError(f"no such {what} ({first_line(error)})", where=name) from error
        if not any(real.is_relative_to(folder) for folder in self._allowed):
            raise EpisodeError(
                f"the {what} is a link that leads out of the dataset's folder",
                where=name,
                remedy="copy the file to that place",
            )
        return path

    def relative(self, text: str) -> str:
        """A message with file names relative to the folder."""
        return text.replace(f"{self.root}/", "")


def _hub_blobs(real: Path) -> list[Path]:
    """The `blobs` folder of the Hugging Face cache entry that a folder is a snapshot of; [] for other folders."""
    for parent in real.parents:
        if parent.name == "snapshots" and _HUB_REPOSITORY.fullmatch(parent.parent.name):
            return [parent.parent / "blobs"]
    return []


class PathTemplate:
    """A path with fields for numbers and a key, such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    Args:
        text: the template. Only plain fields with a width of at most 99 digits are allowed: Python's own templates
            could reach attributes, and fill the memory with one wide number.
        numbers: names of fields that take a number.
        texts: names of fields that take a text.
        where: file and key of the template, for errors.

    Raises:
        UserError: it is not such a template; the message names the wrong field.
    """

    def __init__(
        self, text: str, *, numbers: tuple[str, ...], texts: tuple[str, ...] = (), where: str
    ) -> None:
        try:
            self._parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"{text[:60]!r} is no template of a path ({error})", where=where) from error
        for _, name, layout, conversion in self._parts:
            if name is None:
                continue
            fits = (name in numbers and _NUMBER_FORMAT.fullmatch(layout or "")) or (
                name in texts and not layout
            )
            if conversion or not fits:
                place = "{" + name[:40] + (f":{layout[:20]}" if layout else "") + "}"
                known = ", ".join(f"{{{known}}}" for known in (*numbers, *texts))
                raise UserError(
                    f"the path's place {place} is not known", where=where, remedy=f"known: {known}"
                )

    def fill(self, values: Mapping[str, int | str]) -> str:
        """The path for these values, one for every field."""
        return "".join(
            literal + ("" if name is None else format(values[name], layout or ""))
            for literal, name, layout, _ in self._parts
        )
