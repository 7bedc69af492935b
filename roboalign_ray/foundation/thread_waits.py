"""Sets how long OpenMP threads spin before they sleep. Call it before PyTorch is imported, which reads the variables.

By default, a thread that reaches the end of a parallel region before the others spins for milliseconds. If another
process shares the cores, the thread it waits for is often not scheduled, and spinning keeps it off the core: the work
takes more than ten times as long. Here a thread spins for a few dozen microseconds, which is enough while all threads
run, and then sleeps. Results do not depend on this setting.
"""

from __future__ import annotations

import os

# libgomp (PyTorch's wheels for Linux) counts loop iterations; libiomp and libomp count milliseconds.
_BRIEF = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
_CHOSEN_BY_USER = "OMP_WAIT_POLICY"


def wait_briefly() -> None:
    """Set short spinning for this process and its children. Variables that the user has set take precedence."""
    if _CHOSEN_BY_USER in os.environ:
        return
    for name, value in _BRIEF.items():
        os.environ.setdefault(name, value)


def wait_environment() -> dict[str, str]:
    """This process's spin variables, to be set for workers on machines with other environments."""
    return {name: os.environ[name] for name in (*_BRIEF, _CHOSEN_BY_USER) if name in os.environ}
