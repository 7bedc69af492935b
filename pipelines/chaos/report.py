"""The chaos report, as a Markdown table and as JSON. Pure functions, apart from writing the two files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from roboalign_ray.alignment.records.audit import Finding
from roboalign_ray.config.asynchrony import LivenessConfig
from roboalign_ray.foundation.faults import FaultReport
from roboalign_ray.pipelines.chaos.plan import KINDS
from roboalign_ray.pipelines.chaos.record import Injection

TABLE, FIGURES = "chaos.md", "chaos.json"
DEAD_S, HUNG_S = 2.0, 15.0  # limits for noticing the loss of a worker


@dataclass(frozen=True)
class ChaosReport:
    """The injected faults and the state of the run afterwards.

    Attributes:
        injections: in order.
        plan: planned faults and fired faults.
        findings: promises, kept or not.
        lost, twice: numbers of groups that were lost, and that were trained twice.
        surprises: reasons of worker losses without an injected fault.
        updates: number of updates at the end.
        resumed: how often the run was resumed after a full disk.
        seconds: total duration.
        liveness: the heartbeat settings of the workers.
    """

    injections: tuple[Injection, ...]
    plan: FaultReport
    findings: tuple[Finding, ...]
    lost: tuple[int, ...]
    twice: tuple[int, ...]
    surprises: tuple[str, ...]
    updates: int
    resumed: int
    seconds: float
    liveness: LivenessConfig

    @property
    def promises(self) -> tuple[Finding, ...]:
        """All promises, including those on noticing faults."""
        return (*self.findings, *_noticed(self.injections))

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(finding.holds for finding in self.promises)


def markdown(report: ChaosReport) -> str:
    """Two tables: one row per kind of fault, one row per promise."""
    lines = [
        "| fault | planned | injected | noticed after (s), median / max | groups in flight | lost | twice | replaced |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(report, kind) for kind in KINDS if any(f.point == kind for f in report.plan.planned)),
        "",
        f"{report.updates} updates in {report.seconds:.0f} s; resumed {report.resumed} times after a full disk; "
        f"{len(report.surprises)} workers lost without an injected fault.",
        "",
        "| promise | | |",
        "|---|---|---|",
        *(f"| {f.promise} | {'kept' if f.holds else '**broken**'} | {f.detail} |" for f in report.promises),
    ]
    return "\n".join(lines) + "\n"


def figures(report: ChaosReport) -> dict[str, Any]:
    """The whole report in JSON types; times count from the first injection."""
    first = min((injection.at for injection in report.injections), default=0.0)
    return {
        "holds": report.holds,
        "updates": report.updates,
        "seconds": round(report.seconds, 1),
        "resumed": report.resumed,
        "lost_groups": list(report.lost),
        "groups_trained_twice": list(report.twice),
        "unexpected_losses": list(report.surprises),
        "liveness": report.liveness.model_dump(),
        "planned": [asdict(fault) for fault in report.plan.planned],
        "promises": [asdict(finding) for finding in report.promises],
        "strikes": [
            {
                "kind": injection.kind,
                "target": injection.target,
                "at_s": round(injection.at - first, 2),
                "noticed_after_s": None if injection.seconds is None else round(injection.seconds, 3),
                "why": injection.why,
                "groups_in_hand": sorted(injection.groups),
                "replaced": injection.replaced,
                "moot": injection.moot,
            }
            for injection in report.injections
        ],
    }


def write_report(report: ChaosReport, out: Path) -> None:
    """Write table and figures into the run directory."""
    out.mkdir(parents=True, exist_ok=True)  # a run that ends at once leaves no folder
    (out / TABLE).write_text(markdown(report), encoding="utf-8")
    (out / FIGURES).write_text(json.dumps(figures(report), indent=2) + "\n", encoding="utf-8")


def _row(report: ChaosReport, kind: str) -> str:
    injections = [injection for injection in report.injections if injection.kind == kind]
    after = [injection.seconds for injection in injections if injection.seconds is not None]
    groups = {number for injection in injections for number in injection.groups}
    cells = (
        f"`{kind}`: {KINDS[kind].what}",
        sum(fault.point == kind for fault in report.plan.planned),
        len(injections),
        f"{median(after):.2f} / {max(after):.2f}" if after else "",
        len(groups) if groups else "",
        len(groups & set(report.lost)),
        len(groups & set(report.twice)),
        sum(injection.replaced for injection in injections),
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _noticed(injections: Sequence[Injection]) -> Iterator[Finding]:
    """Findings that every injection was noticed, and that lost workers were noticed in time."""
    unseen = [injection for injection in injections if injection.open]
    moot = sum(injection.moot for injection in injections)
    detail = f"{len(injections) - len(unseen) - moot} of {len(injections)}"
    detail += f", {moot} could no longer be noticed" if moot else ""
    detail += f"; not noticed: {unseen[0].kind} of {unseen[0].target}" if unseen else ""
    yield Finding("every fault is noticed", not unseen, detail)
    for what, limit, of in (("dead", DEAD_S, "kill"), ("hung", HUNG_S, "hang")):
        after = [
            injection.seconds
            for injection in injections
            if injection.seconds is not None
            and KINDS[injection.kind].roles
            and KINDS[injection.kind].action == of
        ]
        if after:
            late = sum(seconds > limit for seconds in after)
            detail = f"{max(after):.2f} s at most, {late} of {len(after)} too late"
            yield Finding(f"a {what} worker is noticed within {limit:g} s", not late, detail)
