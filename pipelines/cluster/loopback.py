"""Makes a local Ray listen only on the loopback interface, unless the job's config allows other machines.

Ray binds the metrics page and its own ports to every interface when clusters are enabled. With its setting
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER at 0, on any system, it binds them to loopback. Processes that Ray starts read the
setting from the environment; this process read it when it imported Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants

_SETTING = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def bound_to_loopback(wanted: bool) -> Iterator[None]:
    """If `wanted`, make a Ray that is started inside the block listen only on loopback."""
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
