"""Imports the project's packages from where they are installed, whatever else the import path holds.

Top-level packages called `actors` or `pipelines` are common. Ray puts the driver's working folder first on its workers'
import path, and PYTHONPATH comes before installed packages: a user's package of the same name would hide ours. A user's
`numpy.py` or `random.py` would hide a library, in the workers alone: they import from where the driver does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGES = ("roboalign_ray", "actors", "pipelines", "cluster_configs")
ROOT = str(Path(__file__).resolve().parents[1])


def pin_packages(root: str = ROOT, names: Sequence[str] = PACKAGES) -> None:
    """Import top-level packages from one folder, so that every later import of these names finds them.

    Does nothing for a package that is imported already, or that the folder does not hold. Uses nothing of this module
    but its arguments: Ray sends the function to workers by value.

    Args:
        root: the folder that holds the packages.
        names: of the packages.
    """
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    for name in names:
        spec = None if name in sys.modules else PathFinder.find_spec(name, [root])
        if spec is None or spec.loader is None:
            continue
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


class DriversPath(list[str]):
    """What Ray is to put first on its workers' import path: of the folders that it adds, those that this process has.

    Ray adds the working folder always, and the script's folder where that is on the path here.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Take those folders that this process imports from."""
        here = set(map(os.path.abspath, sys.path))
        super().extend(folder for folder in folders if os.path.abspath(folder) in here)
