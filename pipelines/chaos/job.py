"""A job under fire: runs an alignment job while faults are struck, then holds what it left against its promises.

    profile ──► rounds of run_align ──► journal, checkpoints ──► audit ──┐
                     ▲                                                   ├─► chaos.md, chaos.json
    fault plan ──► striker ─────────────────────────► strikes ───────────┘

A round is one run to `alignment.updates` more updates; there are as many as it takes until everything that was planned
has been struck. A run that a full disk ends is taken up again, as its owner would.
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
from roboalign_ray.pipelines.chaos.injector import Striker, alive
from roboalign_ray.pipelines.chaos.nodes import chaos_cluster
from roboalign_ray.pipelines.chaos.plan import count_faults, draw_plan, draw_soak
from roboalign_ray.pipelines.chaos.report import ChaosReport, write_report
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store

_ROUNDS = 50
# A round is a third of what the rest would take at the pace so far: a job that is struck slows down.
_OF_REST = 3
_GONE_S = 30.0  # for processes that were told to end


@dataclass(frozen=True)
class Order:
    """What to do to a job.

    Attributes:
        faults: "kind" or "kind:times" each; empty takes all that the job has.
        kills: of every role.
        minutes: of a soak; 0 strikes each kind as often as `kills` says.
        nodes: of a local cluster.
        seed: of the plan and the choice of targets.
    """

    faults: Sequence[str] = ()
    kills: int = 5
    minutes: float = 0.0
    nodes: int = 1
    seed: int = 0


@one_job
def run_chaos(config: JobConfig, out: Path, order: Order, *, quiet: bool = False) -> ChaosReport:
    """Run a job under fire; the report, which is also written into `out`.

    Args:
        config: the job; its workers' `max_restarts` must allow for what is planned.
        out: run directory, new.

    Raises:
        UserError: faults that cannot be struck at this job; or as `run_align`.
    """
    out = out.absolute()
    if (out / JOURNAL).exists():
        raise UserError("holds a run already", where=str(out), remedy="choose another folder")
    if config.cluster.address != "local":
        raise UserError(
            f"'{config.cluster.address}' is not struck", where="cluster.address", remedy="use 'local'"
        )
    judged = config.reward.needs_judge and config.judge.relabel.teacher != "none"
    counts = count_faults(order.faults, order.kills, nodes=order.nodes, judged=judged)
    plan = (
        draw_soak(order.seed, counts, 60 * order.minutes)
        if order.minutes
        else draw_plan(order.seed, counts, config.alignment.prompts_per_update)
    )
    # Several nodes are made for the job, so that it has room.
    config = check_ready(Preflight("align", config, out), room=order.nodes == 1)
    began = time.monotonic()
    with chaos_cluster(config, order.nodes) as nodes:
        striker = Striker(plan, out, nodes, order.seed, seconds=bool(order.minutes))
        config, resumed, failure = _run_rounds(config, out, striker, quiet=quiet)
        left = _left_over(striker.processes)
    findings, lost, twice = _findings(config, out, failure)
    findings += (_gone(left), _struck(striker))
    report = ChaosReport(
        strikes=tuple(striker.strikes),
        plan=plan.report(),
        findings=findings,
        lost=lost,
        twice=twice,
        surprises=tuple(striker.surprises),
        updates=config.alignment.updates,
        resumed=resumed,
        seconds=time.monotonic() - began,
        liveness=config.asynchrony.liveness,
    )
    write_report(report, out)
    return report


def _run_rounds(config: JobConfig, out: Path, striker: Striker, *, quiet: bool) -> tuple[JobConfig, int, str]:
    """The job that was run in the end, how often it was taken up after a full disk, and what ended it for good."""
    length, resumed = config.alignment.updates, 0
    for _ in range(_ROUNDS):
        try:
            run_align(config, out, resume=(out / JOURNAL).exists(), quiet=quiet, beside=striker.beside)
        except (OSError, RoleFailure, HostError) as error:
            if not striker.explains(error):
                return config, resumed, first_line(error)
            resumed += 1
            continue
        except KeyboardInterrupt:  # it has left a checkpoint: what was struck until now is told all the same
            striker.strikes.forgo()
            return config, resumed, "stopped by hand"
        if striker.spent:
            return config, resumed, ""
        config = _longer(config, length, striker.share)
    return config, resumed, f"not everything was struck within {_ROUNDS} rounds"


def _longer(config: JobConfig, least: int, share: float) -> JobConfig:
    """The next round: few enough of them that starts take little of the time, short enough not to outlive the plan.

    Args:
        config: the round that was run.
        least: updates of a round.
        share: of the plan that has gone by.
    """
    done = config.alignment.updates
    rest = done / share - done if share else 0.0
    updates = done + max(least, round(rest / _OF_REST))
    return config.model_copy(update={"alignment": config.alignment.model_copy(update={"updates": updates})})


def _findings(
    config: JobConfig, out: Path, failure: str
) -> tuple[tuple[Finding, ...], tuple[int, ...], tuple[int, ...]]:
    """Promises of the run, and the numbers of groups that were lost, and trained twice."""
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
    """Every update's row is there once."""
    steps = [row["step"] for row in read_rows(out / LOGS)]
    return Finding("every update has its row", steps == list(range(updates + 1)), f"{len(steps)} rows")


def _left_over(processes: dict[int, str]) -> list[str]:
    """Workers whose processes are still there a while after all were told to end."""
    ends = time.monotonic() + _GONE_S
    while (left := [name for process, name in processes.items() if alive(process)]) and (
        time.monotonic() < ends
    ):
        time.sleep(0.5)
    return left


def _gone(left: Sequence[str]) -> Finding:
    return Finding("no process is left over", not left, ", ".join(left) or "0 left")


def _struck(striker: Striker) -> Finding:
    report = striker.plan.report()
    told = f"{len(striker.strikes)} of {len(report.planned)} struck"
    return Finding("every fault is struck once", report.exact and striker.spent, told)
