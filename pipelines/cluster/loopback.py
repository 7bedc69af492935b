"""Ray started here listens on this machine alone, unless a job asks otherwise.

Ray binds the metrics page, and each of its own ports, to every interface where it takes the machine for one of a
cluster; where its setting RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is 0, on any system, it binds them to loopback. Processes
that Ray starts read the setting from the environment, this one has read it when it imported Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants

_SETTING = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def bound_to_loopback(wanted: bool) -> Iterator[None]:
    """For the length of the block, a Ray that is started here listens on loopback only, where that is wanted."""
    if not wanted:
        yield
        return
    before, of_ray = os.environ.get(_SETTING), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_SETTING] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = of_ray
        if before is None:
            os.environ.pop(_SETTING, None)
        else:
            os.environ[_SETTING] = before
