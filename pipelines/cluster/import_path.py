"""Workers import from where the driver does.

Ray puts the driver's working folder first on its workers' import path, whether the driver has it there or not: a user's
`numpy.py` or `random.py` would hide a library in the workers alone. What the driver has put there itself, it leaves
out: a reward of that folder would be found by the driver alone.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable


class DriversPath(list[str]):
    """What Ray puts on its workers' import path, each in front of those before it: the driver's folders that come
    before the standard library, in the driver's order. They are the script's, those of PYTHONPATH, and inserted ones.
    """

    def __init__(self) -> None:
        super().__init__(reversed(leading_folders()))

    def extend(self, folders: Iterable[str]) -> None:
        """Ray's own additions, the script's and the working folder: they are there where this process has them."""


def leading_folders() -> list[str]:
    """Absolute folders on this process's import path before the standard library; "" is the working folder."""
    library = os.path.abspath(sysconfig.get_path("stdlib"))
    archive = f"{sys.version_info.major}{sys.version_info.minor}.zip"  # python311.zip, which comes before it
    found: list[str] = []
    for place in sys.path:
        folder = os.path.abspath(place)
        if folder == library or folder.endswith(f"python{archive}"):
            break
        found += [folder] * (os.path.isdir(folder) and folder not in found)
    return found
