"""Pre-training as two Ray Train jobs over one episode store: first the tokenizer, then the world model.

Each job streams windows through Ray Data, checkpoints optimizer, weight average and stream position, and resumes
from them when it is started again with the same output folder. What is kept lands in `out/tokenizer` and
`out/world_model`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from roboalign_ray.config import JobConfig, RoleConfig
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import fit_action_binner
from roboalign_ray.foundation.failures import UserError

Stage = Literal["tokenizer", "world_model"]
STAGES: tuple[Stage, ...] = ("tokenizer", "world_model")
SUMMARY = "training.json"
_STATE = "state.pt"
_SHOWN = (
    "loss",
    "accuracy",
    "psnr_context",
    "psnr_dynamics",
)  # beside the progress bar, where a stage has them
_POLL_S = 2.0


def run_pretrain(
    config: JobConfig, out: Path, stages: tuple[Stage, ...] = STAGES, *, quiet: bool = False
) -> dict[str, Any]:
    """Train the stages in order; one that is complete in `out` is left as it is, a begun one resumes.

    Args:
        config: the job; `tokenizer_weights` names the tokenizer where its stage is left out.
        out: run directory.
        quiet: no progress on the terminal.

    Returns:
        per stage: its last metrics, seconds, and hardware.

    Raises:
        UserError: the store cannot be read or is another robot's, or the world model has no tokenizer to stand on.
        RoleFailure: a stage failed more often than its workers may be restarted.
    """
    from pipelines.runtime import start_ray
    from pipelines.weights import tokenizer_folder

    store = open_store(config.episodes.store)  # what is wrong is told now, not by a worker
    if "world_model" in stages:
        _check_action_dims(fit_action_binner(store, config.episodes).dims, config.world_model.action_dims)
    out = out.absolute()
    if "tokenizer" not in stages and not (out / "tokenizer" / SUMMARY).is_file():
        tokenizer_folder(config)
    with start_ray(config.cluster, worker_logs=False):
        return {stage: _run_stage(config, out, stage, quiet) for stage in stages}


def _run_stage(config: JobConfig, out: Path, stage: Stage, quiet: bool) -> dict[str, Any]:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    summary = out / stage / SUMMARY
    if not summary.is_file():
        steps = (config.tokenizer_training if stage == "tokenizer" else config.pretraining).steps
        trainer = TorchTrainer(
            _train,
            train_loop_config={"config": config.model_dump(), "out": str(out), "stage": stage},
            scaling_config=_scaling(config.cluster.trainer),
            run_config=RunConfig(
                name=stage,
                storage_path=str(out / "checkpoints"),
                failure_config=FailureConfig(max_failures=config.cluster.trainer.max_restarts),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        with _shown(out / "logs" / stage, stage, steps, quiet):
            _fit(trainer, stage)
    return json.loads(summary.read_text())


def _fit(trainer: Any, stage: Stage) -> None:
    """Run the job; what a worker found wrong with the input comes back as the `UserError` that it is."""
    from ray.train import TrainingFailedError

    from pipelines.runtime import RoleFailure

    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {}).values()
        causes = [getattr(failure, "cause", None) or failure for failure in failures] or [error]
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from error
        raise RoleFailure(
            f"training the {stage.replace('_', ' ')}: {type(causes[0]).__name__}: {causes[0]}"
        ) from error


@contextmanager
def _shown(logs: Path, stage: Stage, steps: int, quiet: bool) -> Iterator[None]:
    """Progress on the terminal while the job runs in other processes, read from its newest log line."""
    from rich.console import Console

    from roboalign_ray.foundation.progress import Progress
    from roboalign_ray.foundation.telemetry import last_row

    done = threading.Event()
    before = (last_row(logs) or {"step": 0})["step"]  # of a run that is resumed
    console = Console(stderr=True, quiet=quiet)
    with Progress(stage.replace("_", " "), steps, done=before, console=console) as progress:

        def update() -> None:
            row = last_row(logs)
            if row is not None and row["step"] > progress.done:
                figures = {name: row[name] for name in _SHOWN if name in row}
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


def _scaling(role: RoleConfig):
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


@dataclass
class _Job:
    """What the training loop needs to know of a stage.

    Attributes:
        trainer: `TokenizerTrainer` or `WorldModelTrainer`.
        stream: endless windows, with a position.
        step: one batch to metrics.
        save: writes the result into a folder.
        steps, log_every, checkpoint_every: of the stage's config.
    """

    trainer: Any
    stream: Any
    step: Callable[[dict[str, Any]], dict[str, float]]
    save: Callable[[Path], None]
    steps: int
    log_every: int
    checkpoint_every: int


def _train(spec: dict[str, Any]) -> None:
    """What every worker of a stage runs."""
    import ray.train
    import torch

    config, out, stage = JobConfig.model_validate(spec["config"]), Path(spec["out"]), spec["stage"]
    role = config.cluster.trainer
    torch.set_num_threads(role.threads or max(1, int(role.num_cpus)))
    torch.manual_seed(config.seed)
    job = _tokenizer_job(config) if stage == "tokenizer" else _world_model_job(config, out)
    seconds = _resume(job)
    leads = ray.train.get_context().get_world_rank() == 0
    metrics = _loop(job, out / "logs" / stage, seconds, leads=leads)
    if leads:
        _publish(job, out / stage, metrics)


def _loop(job: _Job, logs: Path, seconds: float, *, leads: bool) -> dict[str, float]:
    """Train to the last step, logging and checkpointing; metrics are means since the last log line."""
    from roboalign_ray.foundation.telemetry import MetricsWriter

    writer = MetricsWriter(logs, resume_at=job.trainer.steps_done + 1) if leads else None
    began, recent, last = time.monotonic() - seconds, [], {}
    for batch in _until(job):
        recent.append(job.step(batch))
        step = job.trainer.steps_done
        if step % job.log_every == 0 or step == job.steps:
            last = {key: sum(m.get(key, 0.0) for m in recent) / len(recent) for key in recent[-1]}
            last["seconds"] = time.monotonic() - began
            recent = []
            if writer is not None:
                writer.scalars(step, last)
        if step % job.checkpoint_every == 0 and step < job.steps:
            _checkpoint(job, last, time.monotonic() - began, leads=leads)
    if writer is not None:
        writer.close()
    return last


def _until(job: _Job) -> Iterator[dict[str, Any]]:
    if job.trainer.steps_done >= job.steps:
        return
    for batch in job.stream:
        yield batch
        if job.trainer.steps_done >= job.steps:
            return


def _checkpoint(job: _Job, metrics: dict[str, float], seconds: float, *, leads: bool) -> None:
    import ray.train
    import torch

    if not leads:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "trainer": job.trainer.state_dict(),
            "stream": job.stream.state_dict(),
            "seconds": seconds,
        }
        torch.save(state, Path(folder) / _STATE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(job: _Job) -> float:
    """Take up the newest checkpoint; returns the seconds already spent."""
    import ray.train
    import torch

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0.0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _STATE, weights_only=False)
    job.trainer.load_state_dict(state["trainer"])
    job.stream.load_state_dict(state["stream"])
    return float(state["seconds"])


def _publish(job: _Job, folder: Path, metrics: dict[str, float]) -> None:
    """Write the result beside its place and rename it: a folder with a summary is a complete one."""
    import torch

    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    job.save(staging)
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    summary = {"steps": job.steps, "hardware": hardware, **metrics}
    (staging / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _stream(config: JobConfig, frames: int, context_range: int, windows: int):
    import ray.train

    from pipelines.feed import WindowFeed
    from roboalign_ray.episodes.windows import WindowSpec

    context = ray.train.get_context()
    workers = context.get_world_size()
    if windows % workers:
        raise UserError(
            f"{windows} windows a step do not divide among {workers} workers",
            where="windows_per_step",
            remedy="make it a multiple of cluster.trainer.workers",
        )
    spec = WindowSpec(
        frames=frames,
        context_range=context_range,
        stride=config.episodes.frame_stride,
        view=config.episodes.view,
        height=config.tokenizer.height,
        width=config.tokenizer.width,
    )
    return WindowFeed(
        store_path=config.episodes.store,
        episodes_config=config.episodes,
        spec=spec,
        batch_size=windows // workers,
        seed=config.seed,
        rank=context.get_world_rank(),
        world_size=workers,
    )


def _tokenizer_job(config: JobConfig) -> _Job:
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.evaluation.perceptual import load_lpips
    from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
    from roboalign_ray.tokenizer.training import TokenizerTrainer

    settings, device = config.tokenizer_training, get_device()
    perceptual = load_lpips(settings.perceptual_network, device=device)
    if not perceptual.real and settings.perceptual_weight > 0:
        raise UserError(
            f"no {settings.perceptual_network} backbone for LPIPS",
            where="tokenizer_training.perceptual_weight",
            remedy="run 'roboalign assets fetch', or set the weight to 0",
        )
    trainer = TokenizerTrainer(
        prepare_model(DualBranchTokenizer(config.tokenizer)),
        settings,
        perceptual if settings.perceptual_weight > 0 else None,
        device=device,
        seed=config.seed,
    )
    return _Job(
        trainer=trainer,
        stream=_stream(config, settings.frames_per_window, settings.context_range, settings.windows_per_step),
        step=lambda batch: trainer.step(batch["context"], batch["frames"]),
        save=lambda folder: trainer.result().save(folder),
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def _check_action_dims(found: int, configured: int) -> None:
    if found != configured:
        raise UserError(
            f"the store's actions have {found} dimensions, the layout {configured}",
            where="world_model.action_dims",
            remedy=f"set it to {found}",
        )


def _world_model_job(config: JobConfig, out: Path) -> _Job:
    from ray.train.torch import get_device, prepare_model

    from pipelines.weights import tokenizer_folder
    from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
    from roboalign_ray.world_model.layout import SequenceLayout
    from roboalign_ray.world_model.pretraining import SlotPredictor, WorldModelTrainer
    from roboalign_ray.world_model.transformer import build_model, save_pretrained

    settings, device = config.pretraining, get_device()
    own = out / "tokenizer"
    folder = own if (own / SUMMARY).is_file() else tokenizer_folder(config)
    tokenizer = DualBranchTokenizer.load(folder).to(device)
    layout = SequenceLayout.from_config(tokenizer.config, config.world_model, config.episodes.action_bins)
    binner = fit_action_binner(open_store(config.episodes.store), config.episodes)
    predictor = SlotPredictor(build_model(config.world_model, layout), layout)
    trainer = WorldModelTrainer(prepare_model(predictor), tokenizer, layout, settings, device=device)

    def save(target: Path) -> None:
        save_pretrained(trainer.result(), layout, target)
        binner.save(target)

    return _Job(
        trainer=trainer,
        stream=_stream(
            config, config.world_model.window_frames, settings.context_range, settings.windows_per_step
        ),
        step=lambda batch: trainer.step(batch["context"], batch["frames"], binner.to_bins(batch["actions"])),
        save=save,
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )
