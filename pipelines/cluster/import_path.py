"""Gives workers the driver's import path.

Ray always puts the driver's working folder first on its workers' import path, even if the driver does not have it
there. A user's `numpy.py` or `random.py` in it would then hide a library only in the workers. Ray also omits folders
that the driver has added, so a reward in such a folder would be found only by the driver.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable


class DriversPath(list[str]):
    """The folders that Ray puts on its workers' import path, each before the previous ones.

    They are the driver's folders before the standard library, in the driver's order: the script's folder, those of
    PYTHONPATH, and inserted ones.
    """

    def __init__(self) -> None:
        super().__init__(reversed(leading_folders()))

    def extend(self, folders: Iterable[str]) -> None:
        """Ignore Ray's additions (script and working folder), which are present if the driver has them."""


def leading_folders() -> list[str]:
    """Absolute folders on this process's import path before the standard library; "" is the working folder."""
    library = os.path.abspath(sysconfig.get_path("stdlib"))
    archive = (
        f"{sys.version_info.major}{sys.version_info.minor}.zip"  # python311.zip comes before the library
    )
    found: list[str] = []
    for place in sys.path:
        folder = os.path.abspath(place)
        if folder == library or folder.endswith(f"python{archive}"):
            break
        found += [folder] * (os.path.isdir(folder) and folder not in found)
    return found
