"""Fixtures shared by every room."""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Tiny tensors gain nothing from threads, and lose much where tests run side by side.
torch.set_num_threads(1)

# How long an example takes says nothing where other processes share the cores.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parents[1]


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

    from roboalign_ray.pipelines.cluster.runtime import set_environment

    set_environment()  # as jobs do: without it, workers run at a niceness of 15
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
