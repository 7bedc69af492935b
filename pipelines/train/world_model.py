"""Pre-training as Ray Train jobs over one episode store: a token or diffusion world model, or inverse dynamics.

Each job streams windows through Ray Data, checkpoints optimizer, weight average and stream position, and resumes
from them when it is started again with the same output folder. A stage's result is written to the folder of `out` with
its name. Which stages a world model has follows from the job's `world_model_kind` (`stages`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.stages import StageName, stage_of, stages_of
from roboalign_ray.pipelines.train.train_job import TrainJob, run_train_job, train_worker

_SHOWN = (
    "loss",
    "accuracy",
    "psnr_context",
    "psnr_dynamics",
    "psnr",
    "psnr_own",
    "r2",
)  # beside the progress bar


@one_job
def run_pretrain(
    config: JobConfig, out: Path, stage: StageName | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Train the world model's stages in order, or one named stage. A stage that is complete in `out` is not run again;
    an interrupted one resumes.

    Args:
        config: the job; `tokenizer_weights` gives the tokenizer if its stage is left out.
        out: run directory.
        stage: the only one to run; None runs all of the world model.
        quiet: show no progress on the terminal.

    Returns:
        per stage: its last metrics, seconds, and hardware; of the inverse dynamics model also R² per dimension.

    Raises:
        UserError: the store cannot be read or is of another robot, there is no tokenizer for the world model, or the
            kind of world model has no such stage.
        RoleFailure: a stage failed more often than its workers may be restarted.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    out = out.absolute()
    stages = tuple(stages_of(config)) if stage is None else (stage,)
    for name in stages:
        stage_of(config, name)
    config = check_ready(Preflight("pretrain", config, out, stages=stages))
    with start_ray(config.cluster, worker_logs=False):
        return {name: _run_stage(config, out, name, quiet) for name in stages}


def _run_stage(config: JobConfig, out: Path, stage: StageName, quiet: bool) -> dict[str, Any]:
    return run_train_job(
        _train,
        {"config": config.model_dump(), "stage": stage},
        out,
        stage,
        role=config.cluster.trainer,
        steps=stage_of(config, stage).steps(config),
        shown=_SHOWN,
        quiet=quiet,
    )


def _train(spec: dict[str, Any]) -> None:
    """The function that every worker of a stage runs."""
    stage = spec["stage"]

    def build(config: JobConfig) -> TrainJob:
        return stage_of(config, stage).build(config, Path(spec["out"]))

    train_worker(build, spec, stage, seed=lambda config: config.seed)
