"""A cluster of several nodes on one machine; nodes can be removed and added while a job runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.cluster_utils import Cluster

from roboalign_ray.config import ClusterConfig, JobConfig, RoleConfig
from roboalign_ray.foundation.failures import first_line
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, set_environment, start_ray
from roboalign_ray.pipelines.cluster.signals import StartedProcesses

# Ray reports a dead node within about three seconds instead of fourteen.
_HEALTH = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """The nodes other than the head node, which runs the driver."""

    def __init__(self, cluster: Cluster, cpus: int, store_bytes: int) -> None:
        self._cluster, self._cpus, self._store_bytes = cluster, cpus, store_bytes
        self._nodes: dict[str, Any] = {}
        self.removed = self.added = 0

    def removable(self) -> set[str]:
        """Ids of the nodes that may be removed."""
        return set(self._nodes)

    def add(self) -> None:
        """Add a node.

        Raises:
            RoleFailure: the node did not start.
        """
        try:
            node = self._cluster.add_node(num_cpus=self._cpus, object_store_memory=self._store_bytes)
        except Exception as error:  # Ray raises no narrower exception
            raise RoleFailure(f"no node could be added: {first_line(error)}") from error
        self._nodes[node.node_id] = node
        self.added += 1

    def remove(self, name: str) -> None:
        """End a node and all its processes at once."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)
        self.removed += 1


@contextmanager
def chaos_cluster(config: JobConfig, nodes: int) -> Iterator[Nodes | None]:
    """Run the block with Ray on `nodes` nodes of this machine; the job still fits when any one of them is removed.

    Yields:
        The nodes that may be removed; None if there is only one node.

    Raises:
        UserError: Ray cannot be started.
        RoleFailure: a node cannot be started.
    """
    if nodes == 1:
        with start_ray(config.cluster, worker_logs=False):
            yield None
        return
    set_environment()
    cpus = _cpus_per_node(config.cluster, nodes)
    store = int(config.cluster.object_store_gb * 1e9)
    head = {"num_cpus": cpus, "object_store_memory": store, "include_dashboard": False}
    # `Cluster` can set its exit hooks only in the main thread, but nodes are added in another thread.
    started = StartedProcesses()
    cluster = Cluster(
        initialize_head=True, shutdown_at_exit=False, head_node_args={**head, "_system_config": _HEALTH}
    )
    try:
        others = Nodes(cluster, cpus, store)
        for _ in range(nodes - 1):
            others.add()
        others.added = 0
        joined = config.cluster.model_copy(update={"address": cluster.address})
        with start_ray(joined, worker_logs=False):
            yield others
    finally:
        started.end(cluster.shutdown)


def _cpus_per_node(cluster: ClusterConfig, nodes: int) -> int:
    """CPUs per node such that all roles fit on one node fewer; Ray uses the next node once a node is half full."""
    roles: list[RoleConfig] = [
        cluster.rollout,
        cluster.scorer,
        cluster.learner,
        cluster.teacher,
        cluster.distiller,
    ]
    needed = sum(role.workers * role.num_cpus for role in roles)
    return max(1, math.ceil(needed / (nodes - 1)))
