"""Runs an alignment job while faults are injected, then checks the job's promises on its run directory.

    profile ──► rounds of run_align ──► journal, checkpoints ──► audit ──┐
                     ▲                                                   ├─► chaos.md, chaos.json
    fault plan ──► fault injector ──────────────────► injections ────────┘

A round runs the job for `alignment.updates` more updates. Rounds follow until all planned faults have been injected. A
run that a full disk ended is resumed, as a user would do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roboalign_ray.alignment.records.audit import Finding, RunRecord, audit
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import HostError, UserError, first_line
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.storage.readers import read_lines
from roboalign_ray.foundation.telemetry.metrics import read_rows
from roboalign_ray.pipelines.align.groups import Numbering
from roboalign_ray.pipelines.align.job import CHECKPOINTS, JOURNAL, LOGS, run_align
from roboalign_ray.pipelines.chaos.injector import FaultInjector, alive
from roboalign_ray.pipelines.chaos.nodes import chaos_cluster
from roboalign_ray.pipelines.chaos.plan import count_faults, draw_plan, draw_soak
from roboalign_ray.pipelines.chaos.report import ChaosReport, write_report
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store

_ROUNDS = 50
# A round has a third of the updates that the rest of the plan needs at the present pace: faults slow a job down.
_OF_REST = 3
_GONE_S = 30.0  # limit for worker processes to end


@dataclass(frozen=True)
class Order:
    """Which faults to inject.

    Attributes:
        faults: each "kind" or "kind:times"; empty takes all kinds that the job supports.
        kills: kills per role.
        minutes: length of a soak; 0 injects each kind a number of times that follows from `kills`.
        nodes: nodes of a local cluster.
        seed: seed of the plan and of the choice of targets.
    """

    faults: Sequence[str] = ()
    kills: int = 5
    minutes: float = 0.0
    nodes: int = 1
    seed: int = 0


@one_job
def run_chaos(config: JobConfig, out: Path, order: Order, *, quiet: bool = False) -> ChaosReport:
    """Run a job with injected faults. Return the report, which is also written into `out`.

    Args:
        config: the job; `max_restarts` of its roles must allow the planned number of losses.
        out: new run directory.

    Raises:
        UserError: this job does not support a chosen fault; or as `run_align`.
    """
    out = out.absolute()
    if (out / JOURNAL).exists():
        raise UserError("holds a run already", where=str(out), remedy="choose another folder")
    if config.cluster.address != "local":
        raise UserError(
            f"no faults are injected into the cluster '{config.cluster.address}'",
            where="cluster.address",
            remedy="use 'local'",
        )
    judged = config.reward.needs_judge and config.judge.relabel.teacher != "none"
    counts = count_faults(order.faults, order.kills, nodes=order.nodes, judged=judged)
    plan = (
        draw_soak(order.seed, counts, 60 * order.minutes)
        if order.minutes
        else draw_plan(order.seed, counts, config.alignment.prompts_per_update)
    )
    # With several nodes, the nodes are sized for the job, so it has room.
    config = check_ready(Preflight("align", config, out), room=order.nodes == 1)
    began = time.monotonic()
    with chaos_cluster(config, order.nodes) as nodes:
        injector = FaultInjector(plan, out, nodes, order.seed, seconds=bool(order.minutes))
        config, resumed, failure = _run_rounds(config, out, injector, quiet=quiet)
        left = _left_over(injector.processes)
    findings, lost, twice = _findings(config, out, failure)
    findings += (_no_process_left(left), _all_injected(injector))
    report = ChaosReport(
        injections=tuple(injector.injections),
        plan=plan.report(),
        findings=findings,
        lost=lost,
        twice=twice,
        surprises=tuple(injector.surprises),
        updates=config.alignment.updates,
        resumed=resumed,
        seconds=time.monotonic() - began,
        liveness=config.asynchrony.liveness,
    )
    write_report(report, out)
    return report


def _run_rounds(
    config: JobConfig, out: Path, injector: FaultInjector, *, quiet: bool
) -> tuple[JobConfig, int, str]:
    """Run the rounds. Return the last config, how often the job was resumed, and its failure ("" if it completed)."""
    length, resumed = config.alignment.updates, 0
    for _ in range(_ROUNDS):
        try:
            run_align(config, out, resume=(out / JOURNAL).exists(), quiet=quiet, beside=injector.attached)
        except (OSError, RoleFailure, HostError) as error:
            if not injector.explains(error):
                return config, resumed, first_line(error)
            resumed += 1
            continue
        except KeyboardInterrupt:  # the job wrote a checkpoint; the faults so far are still reported
            injector.injections.mark_moot()
            return config, resumed, "interrupted by the user"
        if injector.complete:
            return config, resumed, ""
        config = _longer(config, length, injector.share)
    return config, resumed, f"not all faults were injected within {_ROUNDS} rounds"


def _longer(config: JobConfig, least: int, share: float) -> JobConfig:
    """The config of the next round: long enough that starts take little of the time, but not longer than the plan.

    Args:
        config: config of the previous round.
        least: smallest number of updates per round.
        share: share of the plan that has passed.
    """
    done = config.alignment.updates
    rest = done / share - done if share else 0.0
    updates = done + max(least, round(rest / _OF_REST))
    return config.model_copy(update={"alignment": config.alignment.model_copy(update={"updates": updates})})


def _findings(
    config: JobConfig, out: Path, failure: str
) -> tuple[tuple[Finding, ...], tuple[int, ...], tuple[int, ...]]:
    """Findings on the run's promises, and the numbers of groups that were lost and that were trained twice."""
    last = checkpoints.latest(out / CHECKPOINTS)
    if last is None:
        return (Finding("the run completes", False, failure or "no checkpoint"),), (), ()
    try:
        metadata = checkpoints.load(last).metadata
    except checkpoints.CheckpointError as error:
        return (Finding("the last checkpoint loads", False, error.line()),), (), ()
    loads = Finding("the last checkpoint loads", True, last.name)
    schedule = schedule_from_store(config.episodes, config.rollout, config.seed)
    batch, samples = config.alignment.prompts_per_update, config.alignment.group_size
    numbering = Numbering(schedule, batch, samples)
    record = RunRecord(
        journal=list(read_lines(out / JOURNAL, "journal line")),
        ledger=metadata["loop"]["groups"]["ledger"],
        prompt_of=lambda number: numbering.name(number).prompt_id,
        updates=config.alignment.updates,
    )
    complete, *others = audit(record)
    if failure:
        complete = replace(complete, holds=False, detail=f"{complete.detail}; {failure}")
    findings = (complete, *others, loads, _curves(out, config.alignment.updates))
    return findings, record.lost, record.twice


def _curves(out: Path, updates: int) -> Finding:
    """Check that every update has exactly one row of metrics."""
    steps = [row["step"] for row in read_rows(out / LOGS)]
    return Finding("every update has its row", steps == list(range(updates + 1)), f"{len(steps)} rows")


def _left_over(processes: dict[int, str]) -> list[str]:
    """Names of workers whose processes still run after `_GONE_S`."""
    ends = time.monotonic() + _GONE_S
    while (left := [name for process, name in processes.items() if alive(process)]) and (
        time.monotonic() < ends
    ):
        time.sleep(0.5)
    return left


def _no_process_left(left: Sequence[str]) -> Finding:
    return Finding("no process is left over", not left, ", ".join(left) or "0 left")


def _all_injected(injector: FaultInjector) -> Finding:
    report = injector.plan.report()
    detail = f"{len(injector.injections)} of {len(report.planned)} injected"
    return Finding("every fault is injected once", report.exact and injector.complete, detail)
