"""How long OpenMP's threads watch for work before they sleep: set before PyTorch is loaded, for it reads it then.

A thread that reaches the end of a parallel region before the others spins for milliseconds by default. Where another
process shares the cores, the thread that it waits for is often stopped, and spinning keeps it stopped: the work takes
ten times as long and more. Here a thread spins for a few dozen microseconds, which is what the others need while they
all run, and then sleeps. Results do not depend on it.
"""

from __future__ import annotations

import os

# libgomp (PyTorch's wheels for Linux): turns of a loop. libiomp and libomp: milliseconds.
_BRIEF = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
_CHOSEN_BY_USER = "OMP_WAIT_POLICY"


def wait_briefly() -> None:
    """Set it for this process and those that it starts; what the user's environment says about waiting wins."""
    if _CHOSEN_BY_USER in os.environ:
        return
    for name, value in _BRIEF.items():
        os.environ.setdefault(name, value)


def wait_environment() -> dict[str, str]:
    """The variables about waiting as this process has them, for workers on machines with environments of their own."""
    return {name: os.environ[name] for name in (*_BRIEF, _CHOSEN_BY_USER) if name in os.environ}
