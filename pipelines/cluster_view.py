"""What a cluster has: this machine, a running Ray cluster, or one described in a file.

The description is YAML, a list of nodes or kinds of nodes:

    nodes:
      - {name: trainer, cpus: 64, gpus: 8, memory_gb: 1024, accelerator_type: H100, count: 2, resources: {nvme: 1}}
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from pipelines.placement import GPU, Node
from roboalign_ray.config import ClusterConfig, FrozenConfig
from roboalign_ray.config.yaml_source import read_mapping
from roboalign_ray.foundation.failures import UserError

_GB = 1e9


class NodeConfig(FrozenConfig):
    """One node of a described cluster, or `count` equal ones.

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
    """This machine as Ray would see it: usable cores, visible CUDA devices, memory within the container's limit."""
    import torch

    resources = {"CPU": float(_cores()), GPU: float(torch.cuda.device_count())}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    # Ray calls "NVIDIA H100 80GB HBM3" an "H100".
    if match := re.match(r"\w+ (?:\w+ )?([A-Z]+\d+)", device):
        resources[f"accelerator_type:{match[1]}"] = 1.0
    return Node(platform.node() or "localhost", resources, float(_memory()))


def ray_nodes(address: str) -> list[Node]:
    """Nodes alive in the Ray cluster at `address`.

    Raises:
        UserError: no cluster answers there.
    """
    import ray

    from pipelines.runtime import start_ray

    with start_ray(ClusterConfig(address=address), worker_logs=False):
        alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            node["NodeManagerHostname"],
            {name: amount for name, amount in node["Resources"].items() if not name.startswith(_INTERNAL)},
            node["Resources"].get("memory", 0.0),
        )
        for node in alive
    ]


_INTERNAL = ("node:", "memory", "object_store_memory")


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""
