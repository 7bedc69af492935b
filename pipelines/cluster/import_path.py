"""Workers import from where the driver does.

Ray puts the driver's working folder first on its workers' import path. A user's `numpy.py` or `random.py` there would
hide a library in the workers alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


class DriversPath(list[str]):
    """What Ray puts first on its workers' import path: of the folders that it adds, those that this process has.

    Ray adds the working folder always, and the script's folder where that is on the path here.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Take those folders that this process imports from."""
        here = set(map(os.path.abspath, sys.path))
        super().extend(folder for folder in folders if os.path.abspath(folder) in here)
