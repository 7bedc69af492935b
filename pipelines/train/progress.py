"""Training of the learned progress cost as a Ray Train job, on a store with the simulator's labels.

    store ──► labelled frames in memory ──► ProgressTrainer (Ray Train) ──► errors on held-out starts ──► out/progress

An interrupted run resumes; a complete one is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.store import EpisodeStore, open_store
from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.train_job import TrainJob, check_shares, run_train_job, train_worker
from roboalign_ray.planning.progress.distances import LABELS
from roboalign_ray.planning.progress.frames import LabelledFrames, read_labelled_frames, task_of

PROGRESS = "progress"


@one_job
def run_train_progress(config: JobConfig, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train the network and measure it.

    Args:
        config: `agent.progress`, `episodes` and `cluster.trainer` are used.
        out: run directory; `out/progress` is the network's folder.

    Returns:
        "weights": the folder; "errors" by task in centimetres; and the last training metrics.

    Raises:
        UserError: the store has no labels, no held-out starts or not these tasks.
        RoleFailure: training failed more often than its workers may be restarted.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray
    from roboalign_ray.planning.progress.network import ProgressNetwork

    out = out.absolute()
    settings, role = config.agent.progress, config.cluster.trainer
    check_shares(settings.frames_per_step, "frames", role.workers, where="agent.progress.frames_per_step")
    _check_store(open_store(config.episodes.store), config)
    config = check_ready(Preflight("train", config, out))
    spec = {"config": config.model_dump(), "out": str(out)}
    shown = ("object_target_cm", "hand_object_cm")
    with start_ray(config.cluster, worker_logs=False):
        summary = run_train_job(
            _train, spec, out, PROGRESS, role=role, steps=settings.steps, shown=shown, quiet=quiet
        )
    card = ProgressNetwork.load(out / PROGRESS).card
    errors = {task: error.model_dump() for task, error in card.errors.items()}
    return {"weights": str(out / PROGRESS), "errors": errors, "training": summary}


def _check_store(store: EpisodeStore, config: JobConfig) -> None:
    """Check the store before anything starts: labels, names of tasks, and a held-out start of one of them."""
    where, fraction, wanted = str(store.path), config.episodes.held_out_fraction, config.agent.progress.tasks
    remedy = "use a store of 'roboalign episodes generate' with several starts per task"
    splits = {split: store.split(split, fraction) for split in ("train", "held_out")}
    train, held_out = ({task_of(store.group_ids[n]) for n in part} - {""} for part in splits.values())
    for task in wanted:
        if task not in train:
            raise UserError(
                f"no training episode of the task '{task}'",
                where=where,
                remedy=nearest_key(task, sorted(train)) if train else remedy,
            )
    trained = set(wanted) or train
    if not trained:
        raise UserError("no episode of a named task to train on", where=where, remedy=remedy)
    if not trained & held_out:
        raise UserError("no held-out start of these tasks to measure on", where=where, remedy=remedy)
    first = next(n for n in splits["train"] if task_of(store.group_ids[n]) in trained)
    labels = store.read(first).outcome.privileged
    if missing := [name for name in LABELS if name not in labels]:
        raise UserError(f"episodes have no label {missing[0]}", where=where, remedy=remedy)


def _train(spec: dict[str, Any]) -> None:
    """The function that every worker runs."""
    train_worker(_progress_job, spec, PROGRESS, seed=lambda config: config.seed)


def _progress_job(config: JobConfig) -> TrainJob:
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.planning.progress.card import ProgressCard
    from roboalign_ray.planning.progress.frames import FrameBatches
    from roboalign_ray.planning.progress.network import ProgressNetwork
    from roboalign_ray.planning.progress.training import ProgressTrainer, held_out_errors

    settings, context = config.agent.progress, ray.train.get_context()
    store = open_store(config.episodes.store)
    data = _frames(store, "train", settings.tasks, config)
    card = ProgressCard(
        tasks=data.tasks,
        views=data.views,
        height=settings.height,
        width=settings.width,
        embodiments=data.embodiments,
        store=store.path.name,
        starts=data.starts,
    )
    trainer = ProgressTrainer(
        prepare_model(ProgressNetwork(settings, card)),
        settings,
        device=get_device(),
        seed=config.seed + context.get_world_rank(),
    )

    def save(folder: Path) -> None:
        network = trainer.result()
        held_out = _frames(store, "held_out", data.tasks, config)
        network.card = card.model_copy(update={"errors": held_out_errors(network, held_out)})
        network.save(folder)

    share = settings.frames_per_step // context.get_world_size()
    return TrainJob(
        trainer=trainer,
        stream=FrameBatches(data, share, seed=config.seed, rank=context.get_world_rank()),
        step=lambda batch: trainer.step(**batch),
        save=save,
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def _frames(store: EpisodeStore, split: str, tasks: Sequence[str], config: JobConfig) -> LabelledFrames:
    """Labelled frames of a split; held-out tasks without a held-out start are left out."""
    settings, numbers = config.agent.progress, store.split(split, config.episodes.held_out_fraction)
    there = {task_of(store.group_ids[number]) for number in numbers}
    return read_labelled_frames(
        store,
        numbers,
        views=config.episodes.views,
        size=(settings.height, settings.width),
        tasks=[task for task in tasks if split == "train" or task in there],
        memory_gb=settings.memory_gb,
    )
