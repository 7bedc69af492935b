"""Checks file names from untrusted sources, so that they cannot point outside their folder.

A manifest, an archive or a packed folder may come from an untrusted source. A name in it is used only after a check:
on every file system it must be the path of a plain file below the folder, and no two names may mean the same file.
"""

from __future__ import annotations

import re
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from roboalign_ray.foundation.failures import UserError

_LONGEST_PART, _LONGEST = 255, 1024  # bytes, as most file systems allow
_DEEPEST = 16
# Separators and drives of Windows, and control characters.
_FORBIDDEN = re.compile(r"[\\:\x00-\x1f\x7f]")


class UnsafeName(UserError):
    """A name points outside its folder, or two files share it; `where` names the source."""


def check_names(names: Iterable[object], where: str) -> list[str]:
    """Return the names after checking that each is a relative path below any folder that it is joined to.

    Args:
        names: paths with "/" between their parts.
        where: the source of the names, for the error.

    Raises:
        UnsafeName: a name is not a string, is absolute, empty, too long or too deep, or has a part "." or "..", a
            drive, a backslash, a colon or a control character; or two names are the same file when case and Unicode
            normalisation are ignored; or a file's name is also the name of a folder.
    """
    checked: list[str] = []
    taken: set[str] = set()
    folders: set[str] = set()
    for name in names:
        text = _checked(name, where)
        plain = unicodedata.normalize("NFC", text).casefold()
        parts = plain.split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if plain in taken or plain in folders or above & taken:
            raise UnsafeName(f"names {text!r} twice, or as a file and a folder", where=where, remedy=_REMEDY)
        taken.add(plain)
        folders |= above
        checked.append(text)
    return checked


def plain_files(folder: Path) -> list[Path]:
    """Every file below a folder, in a fixed order; links and devices are refused.

    Raises:
        UnsafeName: the folder, or something in it, is a symbolic link, a pipe, a socket or a device.
    """
    if folder.is_symlink():
        raise UnsafeName("is a symbolic link", where=str(folder), remedy="copy the folder itself there")
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found.append(path)
        elif not stat.S_ISDIR(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
            raise UnsafeName(f"is {kind}", where=str(path), remedy="replace it by the file itself")
    return found


_REMEDY = "do not use it: it was not written by this program"


def _checked(name: object, where: str) -> str:
    if not isinstance(name, str):
        raise UnsafeName(f"names a file {name!r}, which is no text", where=where, remedy=_REMEDY)
    parts = name.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        sizes = [0]
    if (
        not all(0 < size <= _LONGEST_PART for size in sizes)
        or sum(sizes) > _LONGEST
        or len(parts) > _DEEPEST
        or _FORBIDDEN.search(name)
        or any(part in (".", "..") or part != part.strip(" ") or part.endswith(".") for part in parts)
    ):
        shown = name if len(name) < 80 else f"{name[:77]}..."
        raise UnsafeName(f"names a file {shown!r} outside of its folder", where=where, remedy=_REMEDY)
    return name
