"""What is told of a job under fire: figures by kind of fault, and which promises about noticing were kept."""

from __future__ import annotations

import json

import pytest

from roboalign_ray.alignment.records.audit import Finding
from roboalign_ray.config.asynchrony import LivenessConfig
from roboalign_ray.foundation.faults import Fault, FaultPlan
from roboalign_ray.pipelines.chaos.record import Injection
from roboalign_ray.pipelines.chaos.report import ChaosReport, figures, markdown, write_report


def injection(kind: str, after: float | None, **more) -> Injection:
    return Injection(kind, f"{kind} 1", 100.0, None if after is None else 100.0 + after, "gone", **more)


def report(*injections: Injection, lost=(), twice=(), findings=()) -> ChaosReport:
    plan = FaultPlan([Fault(s.kind, n, "kill") for n, s in enumerate(injections, 1)]).report()
    return ChaosReport(injections, plan, findings, lost, twice, (), 12, 1, 60.0, LivenessConfig())


def kept(told: ChaosReport) -> dict[str, bool]:
    return {finding.promise: finding.holds for finding in told.promises}


def test_a_line_has_the_figures_of_its_kind():
    told = report(
        injection("rollout", 0.5, groups={1, 2}, replaced=1),
        injection("rollout", 1.5, groups={3}, replaced=1),
        injection("hang", 11.0, groups={4}, replaced=1),
        lost=(3,),
        twice=(4, 9),
    )
    lines = {line.split("`")[1]: line for line in markdown(told).splitlines() if line.startswith("| `")}
    assert (
        lines["rollout"] == "| `rollout`: busy rollout worker killed | 2 | 2 | 1.00 / 1.50 | 3 | 1 | 0 | 2 |"
    )
    assert lines["hang"] == "| `hang`: worker stopped (SIGSTOP) | 1 | 1 | 11.00 / 11.00 | 1 | 0 | 1 | 1 |"


@pytest.mark.parametrize(
    ("noticed", "promise"),
    [
        (injection("scorer", 2.5), "a dead worker is noticed within 2 s"),
        (injection("hang", 15.5), "a hung worker is noticed within 15 s"),
        (injection("weights", None), "every fault is noticed"),
    ],
)
def test_what_is_noticed_late_or_never_breaks_a_promise(noticed, promise):
    told = report(injection("scorer", 1.0), noticed)
    assert [name for name, holds in kept(told).items() if not holds] == [promise]
    assert not told.holds
    assert f"| {promise} | **broken** |" in markdown(told)


def test_where_nothing_is_left_to_notice_no_promise_is_broken():
    assert report(injection("rollout", None, moot=True)).holds


def test_a_broken_promise_of_the_run_breaks_the_report(tmp_path):
    told = report(injection("rollout", 0.1), findings=(Finding("no group is lost", False, "1 of 4"),))
    assert not told.holds
    write_report(told, tmp_path)
    assert "no group is lost | **broken** | 1 of 4" in (tmp_path / "chaos.md").read_text()
    read = json.loads((tmp_path / "chaos.json").read_text())
    assert read == figures(told)
    assert read["strikes"][0]["noticed_after_s"] == pytest.approx(0.1)
