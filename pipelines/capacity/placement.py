"""Decides before a job starts whether its bundles fit on a cluster's nodes.

Pure functions: from nodes and bundles to an assignment or the name of the missing resource. The rules are Ray's: a
bundle is on one node; a fraction of a GPU is on one device, several GPUs are whole devices; an accelerator type is a
resource of its node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from roboalign_ray.config import ClusterConfig, JobConfig, RoleConfig
from roboalign_ray.foundation.failures import UserError

_EPSILON = 1e-6
_SEARCH_STEPS = 20_000
GPU = "GPU"


@dataclass(frozen=True)
class Node:
    """One machine: amounts by resource name, including "CPU" and "GPU"; memory in bytes, 0 if unknown."""

    name: str
    resources: dict[str, float]
    memory: float = 0.0


@dataclass(frozen=True)
class Bundle:
    """The resources that one worker of a role needs on one node."""

    role: str
    index: int
    needs: dict[str, float]

    def __str__(self) -> str:
        amounts = ", ".join(f"{amount:g} {name}" for name, amount in self.needs.items())
        return f"{self.role} worker {self.index} ({amounts or 'nothing'})"


@dataclass(frozen=True)
class Placement:
    """The node of each bundle, or the reason why there is no assignment.

    Attributes:
        nodes: node name per bundle, in the bundles' order; empty if the job does not fit.
        missing: one line that names the missing resource; "" if it fits.
        growing: like `missing`, but for a cluster that may still grow, so that the job may fit later.
    """

    nodes: tuple[str, ...] = ()
    missing: str = ""
    growing: str = ""

    @property
    def fits(self) -> bool:
        """Whether every bundle has a node, or may get one later."""
        return not self.missing


@dataclass(frozen=True)
class _Free:
    """The free resources of a node while bundles are placed."""

    amounts: dict[str, float]
    devices: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, node: Node) -> _Free:
        amounts = {name: amount for name, amount in node.resources.items() if name != GPU}
        return cls(amounts, [1.0] * int(node.resources.get(GPU, 0)))

    def after(self, needs: dict[str, float]) -> Iterator[_Free]:
        """Every distinct state of this node after `needs` are taken from it; empty if they do not fit."""
        amounts = dict(self.amounts)
        for name, amount in needs.items():
            if name != GPU:
                amounts[name] = amounts.get(name, 0.0) - amount
                if amounts[name] < -_EPSILON:
                    return
        gpus, devices = needs.get(GPU, 0.0), sorted(self.devices)
        if gpus <= 0:
            yield _Free(amounts, devices)
        elif gpus < 1:
            # The fullest device first, so that devices stay whole as long as possible.
            for i, left in enumerate(devices):
                if left >= gpus - _EPSILON and (i == 0 or left - devices[i - 1] > _EPSILON):
                    yield _Free(amounts, [*devices[:i], left - gpus, *devices[i + 1 :]])
        else:
            kept = len(devices) - int(gpus)  # whole devices are at the end
            if kept >= 0 and all(left >= 1 - _EPSILON for left in devices[kept:]):
                yield _Free(amounts, [*devices[:kept], *[0.0] * int(gpus)])

    @cached_property
    def key(self) -> tuple:
        """A key that is equal for interchangeable nodes."""
        amounts = sorted(
            (name, round(amount, 5)) for name, amount in self.amounts.items() if amount > _EPSILON
        )
        return tuple(amounts), tuple(sorted(round(left, 5) for left in self.devices))


def roles_of(job: str, config: JobConfig) -> list[tuple[str, RoleConfig]]:
    """The roles whose workers a job uses at the same time, by name.

    Args:
        job: "train", "align", "label", "serve student", "serve teacher", "score student", "score teacher", or a job
            without workers. Pools that grow count with their smallest size.
    """
    cluster, judge = config.cluster, config.reward.needs_judge
    labels = judge and config.judge.relabel.teacher != "none"
    replicas = {"workers": max(1, config.serving.min_replicas)}
    scoring = config.scoring
    readers = ("reader", RoleConfig(workers=scoring.decode_min, num_cpus=scoring.decode_cpus))
    return {
        "train": [("trainer", cluster.trainer)],
        "align": [
            ("rollout", cluster.rollout),
            ("scorer", cluster.scorer),
            ("learner", cluster.learner),
            *([("teacher", cluster.teacher)] if labels else []),
            # Always one distiller, since it holds the student.
            *([("distiller", cluster.distiller.model_copy(update={"workers": 1}))] if judge else []),
        ],
        "label": [("teacher", cluster.teacher)],
        "serve student": [("scorer", cluster.scorer.model_copy(update=replicas))],
        "serve teacher": [("teacher", cluster.teacher.model_copy(update=replicas))],
        "score student": [
            readers,
            ("scorer", cluster.scorer.model_copy(update={"workers": scoring.judge_min})),
        ],
        "score teacher": [readers, ("teacher", cluster.teacher)],
    }.get(job, [])


def placement_of(
    job: str, config: JobConfig, nodes: Sequence[Node], *, here: bool, open_ended: bool = False
) -> Placement:
    """The nodes of a job's workers, or the missing resource.

    Args:
        job: as in `roles_of`.
        here: whether the node is this machine, whose memory must also hold Ray's object store.
        open_ended: whether the cluster may grow to an unknown size, so that the job may fit later.

    Raises:
        UserError: a role asks for 1.5 GPUs.
    """
    bundles = [bundle for role, settings in roles_of(job, config) for bundle in bundles_of(role, settings)]
    placement = place(bundles, nodes)
    if not placement.fits:
        return Placement(growing=placement.missing) if open_ended else placement
    return _with_store(placement, config.cluster, nodes[0]) if here else placement


def _with_store(placement: Placement, cluster: ClusterConfig, node: Node) -> Placement:
    if node.memory and cluster.object_store_gb * 1e9 > node.memory:
        memory = f"{node.memory / 1e9:.1f} GB"
        return Placement(
            missing=f"memory: object_store_gb {cluster.object_store_gb:g}, this machine has {memory}"
        )
    return placement


def bundles_of(role: str, config: RoleConfig) -> list[Bundle]:
    """One bundle per worker of a role.

    Raises:
        UserError: `num_gpus` is above 1 and not an integer, which Ray refuses.
    """
    if config.num_gpus > 1 and config.num_gpus % 1:
        raise UserError(
            f"num_gpus {config.num_gpus:g} is neither a fraction of one GPU nor a whole number",
            where=f"cluster.{role}",
        )
    needs = {"CPU": config.num_cpus, GPU: config.num_gpus, **config.resources}
    if config.accelerator_type:
        needs[f"accelerator_type:{config.accelerator_type}"] = 0.001
    needs = {name: amount for name, amount in needs.items() if amount > 0}
    return [Bundle(role, index, needs) for index in range(config.workers)]


def place(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> Placement:
    """Assign every bundle to a node, or find the missing resource.

    Large bundles are placed first, with backtracking. Interchangeable nodes are tried once and dead ends are
    remembered, so jobs of some dozens of bundles are decided exactly. If the search runs out of steps, it reports the
    bundle that it could not place.
    """
    if not nodes:
        return Placement(missing="the cluster has no node")
    if missing := _shortage(bundles, nodes):
        return Placement(missing=missing)
    order = sorted(
        range(len(bundles)), key=lambda i: (_weight(bundles[i], nodes), bundles[i].role), reverse=True
    )
    search = _Search([bundles[i] for i in order], [_Free.of(node) for node in nodes])
    if not search.solve():
        stuck = bundles[order[search.deepest]]
        return Placement(missing=f"{stuck} does not fit beside the other workers; {_tightest(stuck, nodes)}")
    chosen = dict(zip(order, search.chosen, strict=True))
    return Placement(nodes=tuple(nodes[chosen[i]].name for i in range(len(bundles))))


class _Search:
    """Depth-first search, one bundle per level; without recursion, since there may be thousands of bundles."""

    def __init__(self, bundles: Sequence[Bundle], free: list[_Free]) -> None:
        self.bundles, self.free = bundles, free
        self.chosen: list[int] = []
        self.dead: set[tuple] = set()
        self.steps, self.deepest = 0, 0

    def solve(self) -> bool:
        """Whether all bundles can be placed; then `chosen` has their nodes."""
        levels, before = [self._ways()], []
        while len(self.chosen) < len(self.bundles):
            way = next(levels[-1], None)
            if way is not None:
                node, left = way
                self.chosen.append(node)
                before.append(self.free[node])
                self.free[node] = left
                levels.append(self._ways())
            elif self.chosen:
                levels.pop()
                self.free[self.chosen.pop()] = before.pop()
            else:
                return False
        return True

    def _ways(self) -> Iterator[tuple[int, _Free]]:
        """The nodes that fit the next bundle, with their state afterwards; interchangeable nodes occur once."""
        depth = len(self.chosen)
        self.deepest = max(self.deepest, depth)
        state = (depth, *sorted(free.key for free in self.free))
        if state in self.dead or self.steps > _SEARCH_STEPS + len(self.bundles):
            return
        self.steps += 1
        tried = set()
        for node, free in enumerate(self.free):
            if free.key not in tried:
                tried.add(free.key)
                for left in free.after(self.bundles[depth].needs):
                    yield node, left
        self.dead.add(state)


def _names(bundles: Iterable[Bundle]) -> list[str]:
    return list(dict.fromkeys(name for bundle in bundles for name in bundle.needs))


def _weight(bundle: Bundle, nodes: Sequence[Node]) -> float:
    """The largest share of any resource of the cluster that a bundle takes."""
    totals = {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in bundle.needs}
    return max((amount / totals[name] for name, amount in bundle.needs.items() if totals[name]), default=0.0)


def _shortage(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    """The first resource of which the cluster or its largest node has too little; "" if the totals suffice."""
    for name in _names(bundles):
        needed = sum(bundle.needs.get(name, 0.0) for bundle in bundles)
        present = sum(node.resources.get(name, 0.0) for node in nodes)
        if name.startswith("accelerator_type:"):
            if present <= 0:
                return f"no node has accelerator type {name.partition(':')[2]}"
        elif needed > present + _EPSILON:
            return f"{name}: {needed:g} needed, {present:g} in the cluster"
    alike: dict[tuple, list[Bundle]] = {}
    for bundle in bundles:
        alike.setdefault(tuple(sorted(bundle.needs.items())), []).append(bundle)
    for bundle, *others in alike.values():
        room, wanted = sum(_copies(bundle.needs, node) for node in nodes), 1 + len(others)
        if room == 0:
            return f"{bundle} fits on no single node; {_tightest(bundle, nodes)}"
        if room < wanted:
            return f"room for {room:g} of {wanted} workers like {bundle}; {_tightest(bundle, nodes)}"
    return ""


def _copies(needs: dict[str, float], node: Node) -> float:
    """The number of equal bundles that an empty node holds."""
    counts = []
    for name, amount in needs.items():
        present = node.resources.get(name, 0.0)
        if name == GPU and amount < 1:
            counts.append(int(present) * ((1 + _EPSILON) // amount))
        else:
            counts.append((present + _EPSILON) // amount)
    return min(counts, default=float("inf"))


def _tightest(bundle: Bundle, nodes: Sequence[Node]) -> str:
    """The scarcest resource of a bundle on the largest node."""
    largest = {name: max(node.resources.get(name, 0.0) for node in nodes) for name in bundle.needs}
    name = max(
        largest, key=lambda name: bundle.needs[name] / largest[name] if largest[name] else float("inf")
    )
    return f"scarcest is {name}: the largest node has {largest[name]:g}"
