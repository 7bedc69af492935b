"""A Ray Train job for any trainer: steps from a stream, metrics, checkpoints, resume, and a complete or absent result.

    driver    run_train_job ──► TorchTrainer ──► progress bar, a worker's UserError unchanged
    workers   train_worker  ──► resume ──► step, log, checkpoint … ──► publish `out/<name>`

    out/
      <name>/          the job's result, with training.json, provenance.json and profile.yaml; only when complete
      logs/<name>/     curves
      checkpoints/     checkpoints of Ray Train

A job that is started again with the same output folder resumes from its newest checkpoint; a complete one is not run
again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from roboalign_ray.config import JobConfig, RoleConfig
from roboalign_ray.config.loading import dump_shareable
from roboalign_ray.foundation.failures import ReportedError, UserError
from roboalign_ray.foundation.run_record import (
    ModelReference,
    describe,
    this_command,
    write_record,
)
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.readers import read_object

SUMMARY = "training.json"
_STATE = "state.safetensors"
_POLL_S = 2.0


class Trainer(Protocol):
    """The state of a trainer that a job saves: everything that the next step depends on."""

    steps_done: int

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stream(Protocol):
    """Endless batches with a position, such as a `Feed`."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class TrainJob:
    """One worker's side of a job.

    Attributes:
        trainer: the trainer; it counts its steps in `steps_done`.
        stream: endless batches of this worker's share.
        step: makes one optimizer step on a batch and returns metrics.
        save: writes the result into a folder.
        steps, log_every, checkpoint_every: in optimizer steps.
        tokenizer: folder of the tokenizer that the result needs, and its origin; None if it needs none.
        measure: measures the result in its folder; the figures stand in its summary.
    """

    trainer: Trainer
    stream: Stream
    step: Callable[[dict[str, Any]], dict[str, float]]
    save: Callable[[Path], None]
    steps: int
    log_every: int
    checkpoint_every: int
    tokenizer: tuple[Path, str] | None = None
    measure: Callable[[Path], Mapping[str, float]] | None = None


def run_train_job(
    worker: Callable[[dict[str, Any]], None],
    spec: dict[str, Any],
    out: Path,
    name: str,
    *,
    role: RoleConfig,
    steps: int,
    shown: Iterable[str] = ("loss",),
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a job on the connected cluster; a job that is complete in `out` is not run again.

    Args:
        worker: a module-level function that calls `train_worker` with its argument and the same `name`; every worker
            runs it.
        spec: the argument of `worker`; plain values. "config" is the job's config from `JobConfig.model_dump`.
        out: run directory, absolute.
        name: name of the job in messages, and of the folder of its result.
        role: workers, their resources, and the allowed number of restarts.
        steps: total number of optimizer steps, for the progress bar.
        shown: metrics shown beside the progress bar, if the job has them.
        quiet: show no progress on the terminal.

    Returns:
        steps, hardware, and the last metrics.

    Raises:
        UserError: a worker found its input wrong.
        RoleFailure: the job failed more often than its workers may be restarted.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    summary = out / name / SUMMARY
    if not summary.is_file():
        trainer = TorchTrainer(
            worker,
            train_loop_config={**spec, "out": str(out), "command": this_command()},
            scaling_config=_scaling(role),
            run_config=RunConfig(
                name=name,
                storage_path=str(out / "checkpoints"),
                failure_config=FailureConfig(max_failures=role.max_restarts),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        with _progress(out / "logs" / name, name, steps, tuple(shown), quiet):
            _fit(trainer, name)
    return read_object(summary, "training summary")


def train_worker(
    build: Callable[[JobConfig], TrainJob],
    spec: Mapping[str, Any],
    name: str,
    *,
    seed: Callable[[JobConfig], int],
) -> None:
    """Run one worker of a job: build, resume, train to the last step; the first worker publishes.

    Args:
        build: makes the job; called once, after threads and seed are set.
        spec: the argument of the worker, made by `run_train_job`.
        name: as in `run_train_job`.
        seed: seed of torch, set before the job is built.
    """
    import ray.train
    import torch

    config, out = JobConfig.model_validate(spec["config"]), Path(spec["out"])
    role = config.cluster.trainer
    torch.set_num_threads(role.threads or max(1, int(role.num_cpus)))
    torch.manual_seed(seed(config))
    job = build(config)
    seconds = _resume(job)
    leads = ray.train.get_context().get_world_rank() == 0
    profile = dump_shareable(config)
    metrics = _loop(job, out / "logs" / name, seconds, profile, leads=leads)
    if leads:
        _publish(job, out / name, metrics, spec["command"], profile)


def check_shares(count: int, what: str, workers: int, *, where: str) -> None:
    """Check that every worker gets the same share of a step.

    Args:
        count: number of `what` per step, over all workers.
        where: setting of the number.

    Raises:
        UserError: the number is not divisible by the workers.
    """
    if count % workers:
        raise UserError(
            f"{count} {what} a step do not divide among {workers} workers",
            where=where,
            remedy="make it a multiple of cluster.trainer.workers",
        )


def _scaling(role: RoleConfig) -> Any:
    from ray.train import ScalingConfig

    resources = {"CPU": role.num_cpus, **role.resources}
    if role.num_gpus > 0:
        resources["GPU"] = role.num_gpus
    return ScalingConfig(
        num_workers=role.workers,
        use_gpu=role.num_gpus > 0,
        resources_per_worker=resources,
        accelerator_type=role.accelerator_type,
    )


def _fit(trainer: Any, name: str) -> None:
    """Run the job; a `ReportedError` of a worker is raised unchanged."""
    from ray.train import TrainingFailedError

    from roboalign_ray.pipelines.cluster.runtime import RoleFailure

    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {}).values()
        causes = [getattr(failure, "cause", None) or failure for failure in failures] or [error]
        for cause in causes:
            if isinstance(cause, ReportedError):
                raise cause from error
        [cause, *_] = causes
        raise RoleFailure(
            f"training the {name.replace('_', ' ')}: {type(cause).__name__}: {cause}"
        ) from error


@contextmanager
def _progress(logs: Path, name: str, steps: int, shown: tuple[str, ...], quiet: bool) -> Iterator[None]:
    """Show progress on the terminal while the job runs in other processes, from its newest log line."""
    from roboalign_ray.foundation.telemetry.metrics import last_row
    from roboalign_ray.foundation.telemetry.progress import Progress

    done = threading.Event()
    before = (last_row(logs) or {"step": 0})["step"]  # the last step of a resumed run
    with Progress(name.replace("_", " "), steps, done=before, quiet=quiet) as progress:

        def update() -> None:
            row = last_row(logs)
            if row is not None and row["step"] > progress.done:
                figures = {key: row[key] for key in shown if key in row}
                progress.advance(row["step"] - progress.done, **figures)

        def follow() -> None:
            while not done.wait(_POLL_S):
                update()

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            update()


def _loop(job: TrainJob, logs: Path, seconds: float, profile: str, *, leads: bool) -> dict[str, float]:
    """Train to the last step, with logs and checkpoints; metrics are means since the last log line."""
    from roboalign_ray.foundation.telemetry.metrics import MetricsWriter

    writer = MetricsWriter(logs, resume_at=job.trainer.steps_done + 1) if leads else None
    if writer is not None:
        writer.settings(job.trainer.steps_done, profile)
    began, recent, last = time.monotonic() - seconds, [], {}
    for batch in _remaining_batches(job):
        recent.append(job.step(batch))
        step = job.trainer.steps_done
        if step % job.log_every == 0 or step == job.steps:
            last = _means(recent)
            last["seconds"] = time.monotonic() - began
            recent = []
            if writer is not None:
                writer.scalars(step, last)
        if step % job.checkpoint_every == 0 and step < job.steps:
            _checkpoint(job, last, time.monotonic() - began, leads=leads)
    if writer is not None:
        writer.close()
    return last


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every figure over the rows in which it is finite; a figure that no row has is left out."""
    known: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if math.isfinite(value):
                known.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in known.items()}


def _remaining_batches(job: TrainJob) -> Iterator[dict[str, Any]]:
    if job.trainer.steps_done >= job.steps:
        return
    for batch in job.stream:
        yield batch
        if job.trainer.steps_done >= job.steps:
            return


def _checkpoint(job: TrainJob, metrics: dict[str, float], seconds: float, *, leads: bool) -> None:
    import ray.train

    from roboalign_ray.foundation.storage.state_files import write_state

    if not leads:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"trainer": job.trainer.state_dict(), "stream": job.stream.state_dict()}
        write_state(Path(folder) / _STATE, {**state, "seconds": seconds})
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(job: TrainJob) -> float:
    """Restore the newest checkpoint, which holds only data; return the seconds already spent."""
    import ray.train

    from roboalign_ray.foundation.storage.state_files import read_state

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0.0
    with checkpoint.as_directory() as folder:
        state = read_state(Path(folder) / _STATE)
    job.trainer.load_state_dict(state["trainer"])
    job.stream.load_state_dict(state["stream"])
    return float(state["seconds"])


def _publish(
    job: TrainJob, folder: Path, metrics: dict[str, float], command: Sequence[str], profile: str
) -> None:
    """Write the result; a folder with a summary is complete."""
    import torch

    from roboalign_ray.episodes.action_card import ActionCard

    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    with complete_or_absent(folder) as writing:
        job.save(writing)
        measured = job.measure(writing) if job.measure else {}
        summary = {"steps": job.steps, "hardware": hardware, **metrics, **measured}
        (writing / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        card = ActionCard.load(writing)
        record = describe(
            folder.name,
            job.steps,
            command,
            tokenizer=ModelReference.of(*job.tokenizer) if job.tokenizer else None,
            action_card=card.hash if card else None,
        )
        write_record(writing, record, profile)
