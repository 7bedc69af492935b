"""What the driver and the object store hold while the batch grows sixteenfold.

    python benchmarks/driver_memory.py

The alignment loop with workers that only wait (`_waiting.py`), whose groups carry bytes. The driver must hold
references and numbers alone: its memory does not grow with what the groups weigh. What the object store holds must be
gone after the update that it was made for (with staleness 0), but for the newest weights, and altogether at the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path

import ray
from _waiting import WaitingCrew, show, waiting_crew, waiting_job

from roboalign_ray.config import JobConfig
from roboalign_ray.pipelines.cluster.runtime import start_ray
from roboalign_ray.pipelines.cluster.worker_pool import Observer

WEIGHTS = 50_000  # bytes at most of the newest weights and what describes them: they stay
_SETTLE_S = 60.0  # until what nobody refers to is freed
_INSTANT = {"seconds": 0.0, "shape": "constant"}


def driver_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def store_bytes() -> int:
    """What lies in this node's object store."""
    from ray._private.internal_api import node_stats

    [node] = ray.nodes()
    address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    return node_stats(address, port, include_memory_info=False).store_stats.object_store_bytes_used


def settled_store_bytes(least: int = 0) -> int:
    """The same once references that were let go are counted, or it falls to `least`."""
    gc.collect()
    ends = time.monotonic() + _SETTLE_S
    while (held := store_bytes()) > least and time.monotonic() < ends:
        time.sleep(0.1)
    return held


class Peak(Observer):
    """Most memory of the driver at the end of any turn."""

    def __init__(self) -> None:
        self.bytes = 0

    def turned(self) -> None:
        """A turn is over."""
        self.bytes = max(self.bytes, driver_bytes())


def memory_job(batch: int, updates: int, staleness: int = 0) -> JobConfig:
    """Two rollout workers, calls of up to four groups."""
    return waiting_job(
        updates=updates,
        batch=batch,
        workers=2,
        staleness=staleness,
        call=4,
        work={"rollout": _INSTANT, "scorer": _INSTANT, "learner": _INSTANT},
    )


def held(crew: WaitingCrew, config: JobConfig, payload: int) -> dict[str, int]:
    """Bytes: the driver's most; the store's before, after the update that left most behind, and at the end."""
    peak, before, after = Peak(), settled_store_bytes(), 0
    crew.force.observers = [peak]
    for update in crew.loop(config, payload=payload).updates(lambda: False):
        del update  # its groups' references
        if not config.asynchrony.staleness:
            after = max(after, settled_store_bytes(before + WEIGHTS))
    crew.force.observers = []
    return {
        "driver_bytes": peak.bytes,
        "store_before": before,
        "store_after_an_update": after,
        "store_at_the_end": settled_store_bytes(before),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128], help="groups per update")
    parser.add_argument("--payload", type=int, default=1_000_000, help="bytes of a group")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--staleness", type=int, default=0)
    args = parser.parse_args()
    jobs = [memory_job(batch, args.updates, args.staleness) for batch in args.batches]
    with start_ray(JobConfig().cluster, worker_logs=False), waiting_crew(jobs[0]) as crew:
        held(crew, jobs[0], args.payload)  # warms up
        for batch, config in zip(args.batches, jobs, strict=True):
            found = held(crew, config, args.payload)
            show({"batch": batch, "update_bytes": batch * args.payload, **found})


if __name__ == "__main__":
    main()
