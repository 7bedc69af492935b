"""What came of a job under fire, as a table for people and as JSON. Pure but for the two files."""

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
from roboalign_ray.pipelines.chaos.record import Strike

TABLE, FIGURES = "chaos.md", "chaos.json"
DEAD_S, HUNG_S = 2.0, 15.0  # within which the loss of a worker must have been noticed


@dataclass(frozen=True)
class ChaosReport:
    """What was done and what became of it.

    Attributes:
        strikes: in order.
        plan: planned against fired.
        findings: promises, kept or not.
        lost, twice: numbers of groups.
        surprises: why workers were lost that nothing had struck.
        updates: asked for in the end.
        resumed: how often the run was taken up again after a full disk.
        seconds: of it all.
        liveness: the settings that the workers were watched with.
    """

    strikes: tuple[Strike, ...]
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
        """All of them, those about noticing included."""
        return (*self.findings, *_noticed(self.strikes))

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(finding.holds for finding in self.promises)


def markdown(report: ChaosReport) -> str:
    """Two tables: one line per kind of fault, one per promise."""
    lines = [
        "| fault | planned | struck | noticed after (s), median / most | groups in hand | lost | twice | replaced |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(report, kind) for kind in KINDS if any(f.point == kind for f in report.plan.planned)),
        "",
        f"{report.updates} updates in {report.seconds:.0f} s; taken up again after a full disk {report.resumed} times; "
        f"{len(report.surprises)} workers lost that nothing had struck.",
        "",
        "| promise | | |",
        "|---|---|---|",
        *(f"| {f.promise} | {'kept' if f.holds else '**broken**'} | {f.detail} |" for f in report.promises),
    ]
    return "\n".join(lines) + "\n"


def figures(report: ChaosReport) -> dict[str, Any]:
    """Everything, JSON types; times count from the first strike."""
    first = min((strike.at for strike in report.strikes), default=0.0)
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
                "kind": strike.kind,
                "target": strike.target,
                "at_s": round(strike.at - first, 2),
                "noticed_after_s": None if strike.seconds is None else round(strike.seconds, 3),
                "why": strike.why,
                "groups_in_hand": sorted(strike.groups),
                "replaced": strike.replaced,
                "moot": strike.moot,
            }
            for strike in report.strikes
        ],
    }


def write_report(report: ChaosReport, out: Path) -> None:
    """Table and figures into the run directory."""
    out.mkdir(parents=True, exist_ok=True)  # a run that ends at once leaves nothing
    (out / TABLE).write_text(markdown(report), encoding="utf-8")
    (out / FIGURES).write_text(json.dumps(figures(report), indent=2) + "\n", encoding="utf-8")


def _row(report: ChaosReport, kind: str) -> str:
    strikes = [strike for strike in report.strikes if strike.kind == kind]
    after = [strike.seconds for strike in strikes if strike.seconds is not None]
    groups = {number for strike in strikes for number in strike.groups}
    cells = (
        f"`{kind}`: {KINDS[kind].what}",
        sum(fault.point == kind for fault in report.plan.planned),
        len(strikes),
        f"{median(after):.2f} / {max(after):.2f}" if after else "",
        len(groups) if groups else "",
        len(groups & set(report.lost)),
        len(groups & set(report.twice)),
        sum(strike.replaced for strike in strikes),
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _noticed(strikes: Sequence[Strike]) -> Iterator[Finding]:
    """That every strike was noticed, and lost workers in time."""
    unseen = [strike for strike in strikes if strike.open]
    moot = sum(strike.moot for strike in strikes)
    told = f"{len(strikes) - len(unseen) - moot} of {len(strikes)}"
    told += f", {moot} had nothing left to notice" if moot else ""
    told += f"; not: {unseen[0].kind} of {unseen[0].target}" if unseen else ""
    yield Finding("every fault is noticed", not unseen, told)
    for what, limit, of in (("dead", DEAD_S, "kill"), ("hung", HUNG_S, "hang")):
        after = [
            strike.seconds
            for strike in strikes
            if strike.seconds is not None and KINDS[strike.kind].roles and KINDS[strike.kind].action == of
        ]
        if after:
            late = sum(seconds > limit for seconds in after)
            told = f"{max(after):.2f} s at most, {late} of {len(after)} later"
            yield Finding(f"a {what} worker is noticed within {limit:g} s", not late, told)
