"""Simulate episodes on all cores of a Ray cluster and write them to a store.

    (task, start) groups ──► SimulatorWorker ×N ──episodes──► write_store ──► store
                             bounded in flight, returned in order

The store has the order of the groups, for any number of workers. So a run is reproducible, and a longer run begins with
the episodes of a shorter one.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from roboalign_ray.config import SimulationConfig
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.metaworld import MetaworldSource
from roboalign_ray.episodes.sources.metaworld_tasks import DEFAULT_TASKS
from roboalign_ray.episodes.store import StoreSummary, write_store
from roboalign_ray.foundation.storage.folder_lock import one_writer
from roboalign_ray.foundation.storage.shards import StoreCard
from roboalign_ray.pipelines.cluster.loopback import bound_to_loopback
from roboalign_ray.pipelines.cluster.runtime import session, set_environment

_AHEAD = 3  # groups in flight per worker: enough to keep it busy, few enough for the memory
_GROUP_SECONDS = 1800.0  # a group takes seconds, but on a busy machine the first ones start slowly

Item = Episode | Quarantined


class SimulatorWorker:
    """One process with one simulator."""

    def __init__(self, config: SimulationConfig) -> None:
        self._source = MetaworldSource(config)

    def group(self, task: str, index: int) -> list[Item]:
        """Simulate every variant of one start state."""
        return self._source.group(task, index)


@one_writer
def generate(
    config: SimulationConfig,
    out: Path,
    *,
    shard_episodes: int = 64,
    held_out_fraction: float = 0.1,
    crf: int = 18,
    overwrite: bool = False,
    show_progress: bool = True,
) -> StoreSummary:
    """Simulate episodes and write a store.

    Args:
        config: tasks, variants and number of workers.
        out: folder of the store.
        shard_episodes, held_out_fraction, crf, overwrite: see `write_store`.
        show_progress: show a progress bar on standard error.

    Raises:
        UserError: Meta-World or OpenGL is missing, a task or variant is unknown, or `out` exists.
    """
    source = MetaworldSource(config)  # checks names and OpenGL before any process is started
    with nullcontext() if ray.is_initialized() else session(_start_ray):
        workers = config.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        items = _simulate(source, workers, show_progress)
        return write_store(
            items,
            out,
            card=card_of(config, out.name, held_out_fraction, crf),
            shard_episodes=shard_episodes,
            held_out_fraction=held_out_fraction,
            crf=crf,
            action_bounds=source.action_bounds,
            overwrite=overwrite,
        )


def _start_ray() -> None:
    set_environment()
    with bound_to_loopback(True):
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def _simulate(source: MetaworldSource, workers: int, show_progress: bool) -> Iterator[Item]:
    """Yield the episodes of every group, in order; if its process died, a group's episodes are quarantined."""
    environment = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": os.environ["MUJOCO_GL"]}
    remote: Any = ray.remote(num_cpus=1, max_restarts=-1, runtime_env={"env_vars": environment})(
        SimulatorWorker
    )
    pool = [remote.remote(source.config) for _ in range(workers)]
    pending: deque[tuple[str, int, Any]] = deque()
    groups, quarantined = deque(source.groups()), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[bad]} quarantined"))
    try:
        with Progress(*columns, *times, console=Console(stderr=True), disable=not show_progress) as progress:
            total = len(groups) * len(source.config.variants)
            bar = progress.add_task("simulating episodes", total=total, bad=0)
            submitted = 0
            while groups or pending:
                while groups and len(pending) < _AHEAD * workers:
                    task, index = groups.popleft()
                    pending.append((task, index, pool[submitted % workers].group.remote(task, index)))
                    submitted += 1
                task, index, reference = pending.popleft()
                for item in _collect(source, task, index, reference):
                    quarantined += isinstance(item, Quarantined)
                    yield item
                    progress.update(bar, advance=1, bad=quarantined)
    finally:
        for worker in pool:
            ray.kill(worker)


def _collect(source: MetaworldSource, task: str, index: int, reference: Any) -> list[Item]:
    try:
        return ray.get(reference, timeout=_GROUP_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        reason = f"the simulator process failed ({type(error).__name__})"
        return [
            Quarantined(f"{source.name}/{task}/{index}/{name}", reason) for name in source.config.variants
        ]


def command_of(config: SimulationConfig, out: str) -> str:
    """The command line that makes this store again."""
    words = ["roboalign", "episodes", "generate", out]
    for name, value in config.model_dump(exclude_defaults=True, exclude={"workers"}).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += ["--set", f"{name}={text}"]
    return shlex.join(words)


def card_of(config: SimulationConfig, name: str, held_out_fraction: float, crf: int) -> StoreCard:
    """The card of a simulated store."""
    return StoreCard(
        title="Simulated manipulation episodes",
        summary=(
            "A Sawyer arm in Meta-World (MIT), driven by scripted experts and by counterfactual variants that begin in "
            "the same start states. Actions are metres per frame and a gripper command; success, contacts, "
            "penetration and object positions are read from the simulator. Goals in the instruction are drawn as "
            "coloured dots where the task has one. Every variant of a start state is in the same split."
        ),
        command=command_of(config, name),
        license="apache-2.0",
        settings={
            **config.model_dump(mode="json", exclude={"workers"}),
            "tasks": list(config.tasks or DEFAULT_TASKS),
            "held_out_fraction": held_out_fraction,
            "crf": crf,
        },
    )
