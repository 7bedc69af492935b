"""`roboalign reproduce planning`: every row of the table of closed-loop planning, task by task.

    out/
      starts/<task>.json                start states, and those that are solved from the beginning
      episodes/<row>/<task>-<start>.json
      planning.json, planning.md, planning.html

    (task, start) ──► EpisodeWorker ×N ──► episodes of the start, all rows ──► table

A complete episode is not run again, so an interrupted experiment resumes and may be given more starts, rows or tasks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.evaluation.report.page import write_page
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.storage.readers import read_object, validated
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.pipelines.align.settings_check import check_settings, keep_settings
from roboalign_ray.pipelines.planning.page import table_page
from roboalign_ray.pipelines.planning.parts import AgentParts
from roboalign_ray.planning.closed_loop.episode import EpisodeRecord, Starts, choose_starts, run_episode
from roboalign_ray.planning.closed_loop.table import ROWS, TaskResult, as_json, markdown, task_result
from roboalign_ray.planning.progress.network import ProgressNetwork

FIGURES, TABLE, PAGE = "planning.json", "planning.md", "planning.html"
_EPISODE_S = 3600.0  # deadline of an episode
_MAY_CHANGE = {"name", "output", "cluster", "telemetry"}


@dataclass(frozen=True)
class TableRequest:
    """What to run.

    Attributes:
        tasks, rows: names.
        starts: start states per task.
        workers: processes; 1 runs everything in this one.
    """

    tasks: tuple[str, ...]
    rows: tuple[str, ...] = tuple(ROWS)
    starts: int = 20
    workers: int = 1


def tasks_of(config: JobConfig) -> tuple[str, ...]:
    """The tasks of the learned cost.

    Raises:
        UserError: there is none.
    """
    if (folder := config.agent.progress_weights) is None:
        raise UserError(
            "no task is named, and there is no learned cost whose tasks to take",
            where="--task",
            remedy="name one, or set agent.progress_weights",
        )
    return ProgressNetwork.load(folder).card.tasks


class EpisodeWorker:
    """One process that runs episodes."""

    def __init__(self, config: JobConfig) -> None:
        self._parts = AgentParts(config)

    def starts(self, task: str, count: int) -> Starts:
        """Start states of a task."""
        return choose_starts(self._parts.simulator(task), self._parts.config.agent.first_start, count)

    def episode(self, row: str, task: str, start: int) -> EpisodeRecord:
        """Run one."""
        parts = self._parts
        agent = parts.agent(row, task, start)
        record, _ = run_episode(row, parts.simulator(task), start, agent, parts.config.agent.decisions)
        return record


@one_job
def run_table(
    config: JobConfig, out: Path, request: TableRequest, *, command: Sequence[str] = (), quiet: bool = False
) -> dict[str, Any]:
    """Run what is missing, and write the table.

    Returns:
        the content of planning.json.

    Raises:
        UserError: a name is unknown, a part is missing or does not fit, or the folder holds another experiment.
    """
    clock, parts = time.monotonic(), AgentParts(config)
    parts.check(request.rows, request.tasks)
    episodes = out / "episodes"
    keep_settings(out, config, _check_same, made=sorted(episodes.glob("*/*.json")))
    workers = _Workers(config, request.workers)
    with workers:
        starts = {task: _starts(workers, out, task, request.starts) for task in request.tasks}
        _run_missing(workers, episodes, request, starts, quiet)
    results = [_result(episodes, request, task, starts[task]) for task in request.tasks]
    figures = as_json(results)
    _write(out / FIGURES, json.dumps(figures, indent=2) + "\n")
    _write(out / TABLE, markdown(results))
    write_page(table_page(config, parts, results, command, time.monotonic() - clock), out / PAGE)
    return figures


def _check_same(before: Any, config: JobConfig, where: str) -> None:
    check_settings(before, config, where, _MAY_CHANGE)


class _Workers:
    """Workers in processes of their own, by Ray; a single one is in this process."""

    def __init__(self, config: JobConfig, count: int) -> None:
        self._config, self._count = config, count
        self._own: EpisodeWorker | None = None
        self._pool: list[Any] = []
        self._session: Any = None

    def __enter__(self) -> _Workers:
        if self._count > 1:
            import ray

            from roboalign_ray.pipelines.cluster.runtime import start_ray

            self._session = start_ray(self._config.cluster, worker_logs=False)
            self._session.__enter__()
            environment = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": os.environ["MUJOCO_GL"]}
            remote: Any = ray.remote(num_cpus=1, max_restarts=3, runtime_env={"env_vars": environment})(
                EpisodeWorker
            )
            self._pool = [remote.remote(self._config) for _ in range(self._count)]
        return self

    def __exit__(self, *error: Any) -> None:
        if self._session is not None:
            import ray

            for worker in self._pool:
                ray.kill(worker)
            self._session.__exit__(*error)

    def results(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Answers in order; a call that is lost with its process ends the job, and a later one resumes."""
        if not self._pool:
            self._own = self._own or EpisodeWorker(self._config)
            for call in calls:
                yield getattr(self._own, method)(*call)
            return
        from roboalign_ray.pipelines.cluster.runtime import wait

        # One call per worker at a time: workers take turns, and answers are kept as they come.
        for first in range(0, len(calls), len(self._pool)):
            turn = calls[first : first + len(self._pool)]
            refs = [
                getattr(worker, method).remote(*call) for worker, call in zip(self._pool, turn, strict=False)
            ]
            yield from wait(refs, _EPISODE_S, "episode")


def _starts(workers: _Workers, out: Path, task: str, count: int) -> Starts:
    """Start states of a task, from the file of an earlier run where it has as many."""
    path = out / "starts" / f"{task}.json"
    if path.is_file():
        content = read_object(path, "start states", keys=("taken", "solved"))
        found = Starts(tuple(content["taken"]), tuple(content["solved"]))
        if len(found.taken) >= count:
            taken = found.taken[:count]
            return Starts(taken, tuple(index for index in found.solved if index < taken[-1]))
    [found] = workers.results("starts", [(task, count)])
    if not found.taken:
        raise UserError("every start state is solved from the beginning", where=task, remedy="leave it out")
    _write(path, json.dumps({"taken": found.taken, "solved": found.solved}) + "\n")
    return found


def _place(episodes: Path, row: str, task: str, start: int) -> Path:
    return episodes / row / f"{task}-{start}.json"


def _run_missing(
    workers: _Workers, episodes: Path, request: TableRequest, starts: dict[str, Starts], quiet: bool
) -> None:
    """Task by task, since a simulator takes a while to build; rows of a task in the table's order."""
    wanted = [
        (row, task, start)
        for task in request.tasks
        for row in ROWS
        if row in request.rows
        for start in starts[task].taken
    ]
    missing = [call for call in wanted if not _place(episodes, *call).is_file()]
    done = len(wanted) - len(missing)
    with Progress("closed loop", len(wanted), unit="episode", done=done, quiet=quiet) as progress:
        for record in workers.results("episode", missing):
            _write(_place(episodes, record.row, record.task, record.start), record.model_dump_json() + "\n")
            progress.advance(row=record.row, task=record.task, solved="yes" if record.success else "no")


def _result(episodes: Path, request: TableRequest, task: str, starts: Starts) -> TaskResult:
    """Of all rows that the folder has, also those of an earlier request."""
    records = []
    for row in ROWS:
        for start in starts.taken:
            if (path := _place(episodes, row, task, start)).is_file():
                content = read_object(path, "episode record")
                records.append(validated(content, EpisodeRecord, "episode record", where=str(path)))
    return task_result(task, records, starts)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
