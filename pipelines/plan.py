"""`roboalign plan`: a job before it runs. What it is made of, how large it is, and whether it fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster_view import described_nodes, local_node, ray_nodes
from pipelines.placement import Bundle, Node, Placement, bundles_of, place
from pipelines.sizes import byte_sizes, parameter_counts, token_sizes
from roboalign_ray.config import ClusterConfig, JobConfig
from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.foundation.failures import UserError

# Roles that stand at the same time, by job.
PHASES = {"pre-training": ("trainer",), "alignment": ("rollout", "scorer", "learner")}


@dataclass(frozen=True)
class Plan:
    """What `make_plan` found out.

    Attributes:
        parameters: per component and part.
        tokens, bytes: per slot, rollout, group and update.
        nodes: the cluster that was looked at.
        placement: per phase, node names by bundle or what is missing.
    """

    config: JobConfig
    parameters: dict[str, dict[str, int]]
    tokens: dict[str, int]
    bytes: dict[str, int]
    nodes: tuple[Node, ...]
    placement: dict[str, Placement]

    @property
    def missing(self) -> str:
        """What keeps the first phase that does not fit from fitting; "" where all fit."""
        return next((f"{name}: {p.missing}" for name, p in self.placement.items() if not p.fits), "")

    def require_fit(self) -> None:
        """Raise `UserError` naming the missing resource where the job cannot be placed."""
        if self.missing:
            raise UserError(
                f"the job cannot be placed: {self.missing}",
                where=f"plan of '{self.config.name}'",
                remedy="change cluster.<role> with --set, or look at another cluster with --address or --cluster",
            )

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "config": self.config.model_dump(mode="json"),
            "parameters": self.parameters,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nodes": [asdict(node) for node in self.nodes],
            "placement": {name: self._placement_json(name) for name in self.placement},
        }

    def _placement_json(self, phase: str) -> dict[str, Any]:
        placement, bundles = self.placement[phase], _bundles(self.config.cluster, PHASES[phase])
        nodes = placement.nodes or (None,) * len(bundles)
        return {
            "fits": placement.fits,
            "missing": placement.missing,
            "bundles": [{**asdict(b), "node": node} for b, node in zip(bundles, nodes, strict=True)],
        }


def make_plan(config: JobConfig, *, address: str | None = None, cluster_file: Path | None = None) -> Plan:
    """Sizes of a job, and its placement on a cluster.

    Args:
        address: a running Ray cluster to look at; None takes the job's own (`cluster.address`).
        cluster_file: a described cluster, looked at instead.

    Raises:
        UserError: the cluster cannot be reached, its description is wrong, or a role asks for 1.5 GPUs.
    """
    nodes = _nodes(address or config.cluster.address, cluster_file)
    # A local Ray stands on this machine: its object store must fit into the memory here.
    store_here = cluster_file is None and (address or config.cluster.address) == "local"
    return Plan(
        config=config,
        parameters=parameter_counts(config),
        tokens=token_sizes(config),
        bytes=byte_sizes(config),
        nodes=nodes,
        placement={
            name: _with_store(
                place(_bundles(config.cluster, roles), nodes), config.cluster, nodes[0], store_here
            )
            for name, roles in PHASES.items()
        },
    )


def _nodes(address: str, cluster_file: Path | None) -> tuple[Node, ...]:
    if cluster_file is not None:
        return tuple(described_nodes(cluster_file))
    return (local_node(),) if address == "local" else tuple(ray_nodes(address))


def _bundles(cluster: ClusterConfig, roles: tuple[str, ...]) -> list[Bundle]:
    return [bundle for role in roles for bundle in bundles_of(role, getattr(cluster, role))]


def _with_store(placement: Placement, cluster: ClusterConfig, node: Node, here: bool) -> Placement:
    if placement.fits and here and node.memory and cluster.object_store_gb * 1e9 > node.memory:
        memory = f"{node.memory / 1e9:.1f} GB"
        return Placement(
            missing=f"memory: object_store_gb {cluster.object_store_gb:g}, this machine has {memory}"
        )
    return placement


def print_plan(plan: Plan) -> None:
    """The plan as text and tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(dump_yaml(plan.config), end="", markup=False)
    for title, rows in (
        ("Parameters", _parameter_rows(plan)),
        ("Tokens", [(_words(name), f"{amount:,}") for name, amount in plan.tokens.items()]),
        ("Bytes", [(_words(name), _bytes(amount)) for name, amount in plan.bytes.items()]),
        ("Cluster", [(node.name, _amounts(node)) for node in plan.nodes]),
        ("Bundles", _bundle_rows(plan)),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)


def _parameter_rows(plan: Plan) -> list[tuple[str, str]]:
    return [
        (component if part == "total" else f"  {part}", f"{count:,}")
        for component, parts in plan.parameters.items()
        for part, count in [("total", parts["total"]), *((p, c) for p, c in parts.items() if p != "total")]
    ]


def _bundle_rows(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    for phase, placement in plan.placement.items():
        rows.append((phase, "fits" if placement.fits else f"does not fit: {placement.missing}"))
        for role in PHASES[phase]:
            bundles = bundles_of(role, getattr(plan.config.cluster, role))
            needs = ", ".join(f"{amount:g} {name}" for name, amount in bundles[0].needs.items())
            rows.append((f"  {role}", f"{len(bundles)} × ({needs})"))
    return rows


def _words(name: str) -> str:
    return name.replace("_", " ")


def _bytes(amount: float) -> str:
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.4g} {unit}"
        amount /= 1000
    return f"{amount:.4g} GB"


def _amounts(node: Node) -> str:
    amounts = [f"{amount:g} {name}" for name, amount in node.resources.items() if amount]
    return ", ".join([*amounts, *([f"{node.memory / 1e9:.1f} GB memory"] if node.memory else [])])
