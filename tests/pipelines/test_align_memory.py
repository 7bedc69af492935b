"""The driver holds references and numbers: what groups weigh shows neither in its memory nor, later, in the store."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

PAYLOAD = 256_000  # bytes of a group


@pytest.fixture
def driver_memory(monkeypatch):
    """The benchmark of that name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import driver_memory

    return driver_memory


@pytest.mark.slow
def test_memory_is_flat_when_the_batch_grows_sixteenfold(ray_cluster, driver_memory):
    small, large = (driver_memory.memory_job(batch, updates=3) for batch in (4, 64))
    with driver_memory.waiting_crew(small) as crew:
        driver_memory.held(crew, small, PAYLOAD)  # what is loaded at first use
        few, many = (driver_memory.held(crew, job, PAYLOAD) for job in (small, large))
    assert many["driver_bytes"] == pytest.approx(few["driver_bytes"], rel=0.05)
    for found in (few, many):
        assert found["store_after_an_update"] <= found["store_before"] + driver_memory.WEIGHTS
        assert found["store_at_the_end"] == found["store_before"]
