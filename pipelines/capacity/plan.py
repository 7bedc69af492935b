"""`roboalign plan`: the parts and sizes of a job, and whether it fits on a cluster, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import ReportedError
from roboalign_ray.pipelines.capacity import diffusion_sizes, sizes
from roboalign_ray.pipelines.capacity.cluster_nodes import ClusterView, cluster_of, described_nodes
from roboalign_ray.pipelines.capacity.placement import Node, Placement, bundles_of, placement_of, roles_of
from roboalign_ray.pipelines.preflight.job import Preflight, cannot_be_placed, find_fault

# The parts of a job, each with the name of its kind in `preflight` and of its roles in `placement`.
PHASES = {"pre-training": ("pretrain", "train"), "alignment": ("align", "align")}


@dataclass(frozen=True)
class Plan:
    """The result of `make_plan`.

    Attributes:
        parameters: per component and part.
        tokens, bytes: per slot, rollout, group and update; no tokens where the world model has none.
        nodes: the cluster that was looked at.
        placement: per phase, node names by bundle or what is missing.
        faults: per phase, what is wrong with its episodes and weights; none where all is well.
        notes: what stops nothing but should be known of episodes and weights, a line each.
        actions: of store and world model, what their actions mean, a line each; none where that cannot be read.
        described: the cluster is only described: the job does not run from here, and need not find its files here.
    """

    config: JobConfig
    parameters: dict[str, dict[str, int]]
    tokens: dict[str, int]
    bytes: dict[str, int]
    nodes: tuple[Node, ...]
    placement: dict[str, Placement]
    faults: dict[str, ReportedError]
    notes: tuple[str, ...] = ()
    actions: dict[str, str] = field(default_factory=dict)
    described: bool = False

    @property
    def missing(self) -> str:
        """The missing resource of the first phase that does not fit; "" if all phases fit."""
        return next((f"{name}: {p.missing}" for name, p in self.placement.items() if not p.fits), "")

    def require_fit(self) -> None:
        """Raise the error that keeps the job from running: first a missing resource, then episodes or weights.

        Raises:
            ReportedError: the same error that the job would raise.
        """
        if self.missing:
            raise cannot_be_placed(self.missing, self.config)
        if not self.described:
            for fault in self.faults.values():
                raise fault

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "config": self.config.public(),
            "parameters": self.parameters,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nodes": [asdict(node) for node in self.nodes],
            "placement": {name: self._placement_json(name) for name in self.placement},
            "input": {name: self.input(name) for name in self.placement},
            "actions": self.actions,
            "notes": list(self.notes),
        }

    def input(self, phase: str) -> str:
        """ "ready", or the error in a phase's episodes or weights, in one line."""
        return self.faults[phase].line() if phase in self.faults else "ready"

    def _placement_json(self, phase: str) -> dict[str, Any]:
        placement = self.placement[phase]
        roles = roles_of(PHASES[phase][1], self.config)
        bundles = [bundle for role, settings in roles for bundle in bundles_of(role, settings)]
        nodes = placement.nodes or (None,) * len(bundles)
        return {
            "fits": placement.fits,
            "missing": placement.missing or placement.growing,
            "bundles": [{**asdict(b), "node": node} for b, node in zip(bundles, nodes, strict=True)],
        }


def make_plan(config: JobConfig, *, address: str | None = None, cluster_file: Path | None = None) -> Plan:
    """Compute a job's sizes and its placement on a cluster, and check its input.

    Args:
        address: address of a running Ray cluster; None uses the job's own (`cluster.address`).
        cluster_file: description of a cluster to be used instead.

    Raises:
        ReportedError: the cluster cannot be reached, its description is wrong, or a role asks for 1.5 GPUs.
    """
    view = _view(config, address, cluster_file)
    # A local Ray runs on this machine, so its object store must fit into this machine's memory.
    here = cluster_file is None and (address or config.cluster.address) == "local"
    jobs = {phase: Preflight(kind, config) for phase, (kind, _) in PHASES.items()}
    faults = {phase: find_fault(job) for phase, job in jobs.items()}
    return Plan(
        config=config,
        **_SIZES[config.world_model_kind](config),
        nodes=view.nodes,
        placement={
            phase: placement_of(roles, config, view.nodes, here=here, open_ended=view.open_ended)
            for phase, (_, roles) in PHASES.items()
        },
        faults={phase: fault for phase, fault in faults.items() if fault is not None},
        notes=tuple(dict.fromkeys(note for job in jobs.values() for note in job.notes)),
        actions=_actions(jobs["alignment"]),
        described=cluster_file is not None,
    )


def _token_sizes(config: JobConfig) -> dict[str, Any]:
    return {
        "parameters": sizes.parameter_counts(config),
        "tokens": sizes.token_sizes(config),
        "bytes": sizes.byte_sizes(config),
    }


def _diffusion_sizes(config: JobConfig) -> dict[str, Any]:
    return {
        "parameters": diffusion_sizes.parameter_counts(config),
        "tokens": {},
        "bytes": diffusion_sizes.byte_sizes(config),
    }


_SIZES = {"token": _token_sizes, "diffusion": _diffusion_sizes}  # by kind of world model


def _actions(job: Preflight) -> dict[str, str]:
    """What the actions of a job's store and world model mean; an error in them is a fault of the plan."""
    cards: dict[str, Callable[[], ActionCard | None]] = {
        "store": lambda: job.store_card,
        "world model": lambda: job.card.actions,
    }
    found = {}
    for name, read in cards.items():
        with suppress(ReportedError):
            card = read()
            found[name] = "no action card" if card is None else card.line()
    return found


def _view(config: JobConfig, address: str | None, cluster_file: Path | None) -> ClusterView:
    if cluster_file is not None:
        return ClusterView(tuple(described_nodes(cluster_file)))
    if address is None or address == config.cluster.address:
        return cluster_of(config.cluster)
    return cluster_of(config.cluster.model_copy(update={"address": address}))


def print_plan(plan: Plan, *, full: bool = False) -> None:
    """Print the plan on stdout as text and tables: the answer first, then the parts of the job.

    Args:
        full: also print the resolved profile with every key.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    tables: dict[str, Sequence[tuple[str, ...]]] = {
        "Answer": _answer_rows(plan),
        "Actions": list(plan.actions.items()),
        "Bundles": _bundle_rows(plan),
        "Cluster": [(node.name, _amounts(node)) for node in plan.nodes],
        "Parameters": _parameter_rows(plan),
        "Tokens": [(_words(name), f"{amount:,}") for name, amount in plan.tokens.items()],
        "Bytes": [(_words(name), _bytes(amount)) for name, amount in plan.bytes.items()],
    }
    shown = {title: rows for title, rows in tables.items() if rows}
    for number, (title, rows) in enumerate(shown.items()):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*map(escape, row))
        if number:
            console.print()
        console.print(table)
    for note in plan.notes:
        console.print(f"\nnote: {note}", markup=False)
    if full:
        console.print("\nProfile")
        console.print(dump_yaml(plan.config), end="", markup=False)


def _answer_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Rows per phase: whether it fits on the cluster, and whether its episodes and weights can be used."""
    return [
        (phase, _fit(placement), f"input: {plan.input(phase)}") for phase, placement in plan.placement.items()
    ]


def _parameter_rows(plan: Plan) -> list[tuple[str, str]]:
    return [
        (component if part == "total" else f"  {part}", f"{count:,}")
        for component, parts in plan.parameters.items()
        for part, count in [("total", parts["total"]), *((p, c) for p, c in parts.items() if p != "total")]
    ]


def _bundle_rows(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    for phase in plan.placement:
        rows.append((phase, ""))
        for role, settings in roles_of(PHASES[phase][1], plan.config):
            bundles = bundles_of(role, settings)
            needs = ", ".join(f"{amount:g} {name}" for name, amount in bundles[0].needs.items())
            rows.append((f"  {role}", f"{len(bundles)} × ({needs or 'nothing'})"))
    return rows


def _fit(placement: Placement) -> str:
    if placement.growing:
        return f"does not fit now ({placement.growing}); the cluster may grow"
    return "fits" if placement.fits else f"does not fit: {placement.missing}"


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
