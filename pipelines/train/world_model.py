"""Pre-training as Ray Train jobs over one episode store: a tokenizer and a token world model, or a diffusion one.

Each job streams windows through Ray Data, checkpoints optimizer, weight average and stream position, and resumes
from them when it is started again with the same output folder. The results are written to `out/tokenizer` and
`out/world_model`. Which stages there are follows from the job's `world_model_kind` (`stages`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.stages import StageName, stages_of
from roboalign_ray.pipelines.train.train_job import TrainJob, run_train_job, train_worker

_SHOWN = ("loss", "accuracy", "psnr_context", "psnr_dynamics", "psnr", "psnr_own")  # beside the progress bar


@one_job
def run_pretrain(
    config: JobConfig, out: Path, stage: StageName | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Train the stages in order. A stage that is complete in `out` is not run again; an interrupted one resumes.

    Args:
        config: the job; `tokenizer_weights` gives the tokenizer if its stage is left out.
        out: run directory.
        stage: the only one to run; None runs all.
        quiet: show no progress on the terminal.

    Returns:
        per stage: its last metrics, seconds, and hardware.

    Raises:
        UserError: the store cannot be read or is of another robot, there is no tokenizer for the world model, or the
            kind of world model has no such stage.
        RoleFailure: a stage failed more often than its workers may be restarted.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    out = out.absolute()
    stages = stages_of(config, stage)
    config = check_ready(Preflight("pretrain", config, out, stages=tuple(stages)))
    with start_ray(config.cluster, worker_logs=False):
        return {name: _run_stage(config, out, name, quiet) for name in stages}


def _run_stage(config: JobConfig, out: Path, stage: StageName, quiet: bool) -> dict[str, Any]:
    return run_train_job(
        _train,
        {"config": config.model_dump(), "stage": stage},
        out,
        stage,
        role=config.cluster.trainer,
        steps=stages_of(config)[stage].steps(config),
        shown=_SHOWN,
        quiet=quiet,
    )


def _train(spec: dict[str, Any]) -> None:
    """The function that every worker of a stage runs."""
    stage = spec["stage"]

    def build(config: JobConfig) -> TrainJob:
        return stages_of(config)[stage].build(config, Path(spec["out"]))

    train_worker(build, spec, stage, seed=lambda config: config.seed)
