"""Fixtures shared by every room."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# Tiny tensors gain nothing from threads, and lose much where tests run side by side.
torch.set_num_threads(1)

# How long an example takes says nothing where other processes share the cores.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parents[1]


# Files that start Ray, by what they say.
_STARTS_RAY = re.compile(r"\bray_cluster\b|^import ray\b|\bray\.init\(", re.MULTILINE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests share a process where several run side by side (pytest-xdist).

    A file stays together, for its fixtures; and all files that start Ray do: two clusters that come up at the same time
    on two cores may not come up at all.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if starts_ray(file) else file

    return ByFile(config, log)


@functools.cache
def starts_ray(file: str) -> bool:
    """Whether a test file, by its path in the repository, brings up a cluster."""
    return bool(_STARTS_RAY.search((REPOSITORY / file).read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real robot episodes; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ROBOALIGN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real episodes at {folder}; set ROBOALIGN_REAL_DATA")
    return folder


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A small Ray cluster of this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()
