"""The hardware and package versions of a run, so that its figures can be judged and reproduced."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """One line: cores, memory, and the accelerators that torch sees."""
    import torch

    cores = usable_cores()
    parts = [f"{cores} CPU core{'s' if cores > 1 else ''}"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    parts += [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)] or ["no GPU"]
    return ", ".join(parts)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of the given packages; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
