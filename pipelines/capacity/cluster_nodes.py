"""The nodes of a cluster: this machine, a running Ray cluster, or a cluster described in a file.

The description is YAML, a list of nodes or kinds of nodes:

    nodes:
      - {name: trainer, cpus: 64, gpus: 8, memory_gb: 1024, accelerator_type: H100, count: 2, resources: {nvme: 1}}
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from roboalign_ray.config import ClusterConfig, FrozenConfig
from roboalign_ray.config.yaml_source import read_mapping
from roboalign_ray.foundation.environment import usable_cores
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.capacity.placement import GPU, Node

_GB = 1e9


class NodeConfig(FrozenConfig):
    """One node of a described cluster, or `count` equal nodes.

    Attributes:
        accelerator_type: Ray's name of the GPU, for example "H100".
        resources: custom Ray resources.
    """

    name: str = "node"
    cpus: float = Field(gt=0)
    gpus: NonNegativeInt = 0
    memory_gb: float = Field(0.0, ge=0)
    accelerator_type: str | None = None
    resources: dict[str, float] = Field(default_factory=dict)
    count: PositiveInt = 1


@dataclass(frozen=True)
class ClusterView:
    """The nodes of a cluster.

    Attributes:
        nodes: existing nodes, and nodes that an autoscaler may still start.
        open_ended: whether an unknown number of nodes may be started, so that a job may fit later.
    """

    nodes: tuple[Node, ...]
    open_ended: bool = False


def described_nodes(path: Path) -> list[Node]:
    """Nodes of a cluster file.

    Raises:
        UserError: the file is missing, not YAML, or not a list of nodes.
    """
    entries = read_mapping(path, str(path)).values.get("nodes")
    if not isinstance(entries, list) or not entries:
        raise UserError("holds no list of nodes", where=str(path), remedy="write nodes: [{cpus: 8, gpus: 1}]")
    return [node for entry in entries for node in _from_entry(entry, str(path))]


def _from_entry(entry: Any, where: str) -> list[Node]:
    try:
        config = NodeConfig.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"node {key}: {first['msg']}", where=where) from None
    resources = {"CPU": config.cpus, GPU: float(config.gpus), **config.resources}
    if config.accelerator_type:
        resources[f"accelerator_type:{config.accelerator_type}"] = 1.0
    names = [config.name] if config.count == 1 else [f"{config.name}-{i}" for i in range(config.count)]
    return [Node(name, dict(resources), config.memory_gb * _GB) for name in names]


def local_node() -> Node:
    """This machine as a local Ray sees it: usable cores, accelerators, and memory within the container's limit."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    resources = {"CPU": float(usable_cpus()), GPU: 0.0}
    # Ray's own count: it uses only the GPU driver, so torch need not be imported.
    manager: Any = get_accelerator_manager_for_resource(GPU)
    if devices := int(manager.get_current_node_num_accelerators()):
        visible = manager.get_current_process_visible_accelerator_ids()
        resources[GPU] = float(devices if visible is None else min(devices, len(visible)))
        if resources[GPU] and (kind := manager.get_current_node_accelerator_type()):
            resources[f"accelerator_type:{kind}"] = 1.0
    return Node(platform.node() or "localhost", resources, float(_memory()))


def cluster_of(config: ClusterConfig) -> ClusterView:
    """The cluster that a job would run on: the connected one, this machine, or the one at the job's address.

    Raises:
        ReportedError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        return _connected()
    return ClusterView((local_node(),)) if config.address == "local" else ray_cluster(config.address)


def ray_cluster(address: str) -> ClusterView:
    """The Ray cluster at `address`: its nodes, and the nodes that it may still start.

    Raises:
        ReportedError: no cluster answers at the address.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    with start_ray(ClusterConfig(address=address), worker_logs=False):
        return _connected()


def usable_cpus() -> int:
    """Processor cores that this process may use: its affinity and its container's quota, at least 1."""
    cores = usable_cores()
    quota, _, period = _cgroup("cpu.max").partition(" ")
    if not period:  # version 1 of control groups
        quota, period = _cgroup("cpu/cpu.cfs_quota_us"), _cgroup("cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def _connected() -> ClusterView:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = tuple(
        Node(
            node["NodeManagerHostname"],
            {name: amount for name, amount in node["Resources"].items() if not name.startswith(_INTERNAL)},
            node["Resources"].get("memory", 0.0),
        )
        for node in alive
    )
    # Nodes started by a launcher or an operator belong to a named group, of which an autoscaler may start more nodes.
    groups = [(node.get("Labels") or {}).get(_GROUP_LABEL, "") for node in alive]
    if not any(groups):
        return ClusterView(nodes)
    limits = _group_limits()
    if limits is None:
        return ClusterView(nodes, open_ended=True)
    return ClusterView((*nodes, *_startable_nodes(limits, groups)))


def _group_limits() -> list[tuple[str, dict[str, float], int]] | None:
    """Name, resources and largest size of every group that the autoscaler reports; None if it reports nothing."""
    from ray._private.state import state

    try:
        config = state.get_cluster_config()
    except Exception:  # not available through ray://
        return None
    groups = list(config.node_group_configs) if config else []
    if not groups or any(group.max_count < 0 for group in groups):
        return None
    return [
        (group.name, {k: float(v) for k, v in group.resources.items()}, group.max_count) for group in groups
    ]


def _startable_nodes(limits: list[tuple[str, dict[str, float], int]], present: list[str]) -> list[Node]:
    """Nodes that the groups may still start."""
    return [
        Node(f"{name} (not started yet)", {k: v for k, v in resources.items() if k != "memory"})
        for name, resources, most in limits
        for _ in range(max(0, most - present.count(name)))
    ]


_INTERNAL = ("node:", "memory", "object_store_memory")
_GROUP_LABEL = "ray.io/node-group"


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""
