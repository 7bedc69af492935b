"""Trains the VLM teacher by maximum likelihood on judged pairs, as a Ray Train job with DeepSpeed.

    stores of pairs ──► PairBatches ──► DeepSpeedTeacher ──► out/teacher/adapter   LoRA only
                        by step         engine per worker └► out/teacher/merged    transformers and vLLM load it

The model is `teacher.model`, or a small one made from scratch. With `vision_steps`, its vision encoder is trained
first, in a separate job that writes the model to out/vision. An interrupted run resumes from its newest checkpoint; a
complete one is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig, TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.student.augmentation import Augmentation
from roboalign_ray.judge.student.on_the_fly_examples import FreshExamples, FreshShares
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.pair_stream import PairBatches
from roboalign_ray.pipelines.train.teacher_engine import ADAPTER, MERGED, DeepSpeedTeacher, copy_processor
from roboalign_ray.pipelines.train.train_job import TrainJob, check_shares, run_train_job, train_worker

TEACHER, VISION = "teacher", "vision"
_START, _ENGINE = "start", "engine"
_WHITENED_ON = 256  # number of videos used to whiten patches and tokens


@one_job
def run_judge_train(
    config: JobConfig, pairs: Sequence[str | Path], out: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """Train a teacher.

    Args:
        config: the `teacher` section and `cluster.trainer` are used.
        pairs: stores of judged pairs and distillation sets.
        out: run directory.
        quiet: show no progress on the terminal.

    Returns:
        "model" and, with LoRA, "adapter": folders; and the last training metrics.

    Raises:
        UserError: pairs or model cannot be read, there are no training pairs, or peft is missing.
        RoleFailure: training failed more often than its workers may be restarted.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    out, paths = out.absolute(), [str(Path(path).absolute()) for path in pairs]
    settings = config.teacher.training
    material = LabelledPairs(paths)
    if not len(material.split("train", settings.held_out_fraction)):
        raise UserError(
            "no judged pair in the train split",
            where=", ".join(paths),
            remedy="give more episodes' pairs, or change teacher.training.held_out_fraction",
        )
    for name in ("pairs_per_step", *(["vision_pairs_per_step"] if settings.vision_steps else [])):
        workers = config.cluster.trainer.workers
        check_shares(getattr(settings, name), "pairs", workers, where=f"teacher.training.{name}")
    config = check_ready(Preflight("train", config, out))
    source = _start(config.teacher, material, out)
    spec = {"config": config.model_dump(), "out": str(out), "pairs": paths, "source": source}
    with start_ray(config.cluster, worker_logs=False):
        run = partial(run_train_job, _train, out=out, role=config.cluster.trainer, quiet=quiet)
        if settings.vision_steps:
            run({**spec, "job": VISION}, name=VISION, steps=settings.vision_steps, shown=("loss", "mae"))
            spec = {**spec, "source": str(out / VISION)}
        summary = run(
            {**spec, "job": TEACHER}, name=TEACHER, steps=settings.steps, shown=("loss", "score_accuracy")
        )
    folders = {"model": str(out / TEACHER / MERGED)}
    if settings.method == "lora":
        folders["adapter"] = str(out / TEACHER / ADAPTER)
    return {**folders, **summary}


def _start(config: TeacherConfig, pairs: LabelledPairs, out: Path) -> str:
    """The folder or name of the initial model; a small model is made once per run."""
    from roboalign_ray.judge.teacher.model_sources import model_source
    from roboalign_ray.judge.teacher.small import make_small_teacher
    from roboalign_ray.judge.teacher.transformers_backend import import_peft

    if config.training.method == "lora":
        import_peft()
    if config.training.start == "model":
        return model_source(config.model)
    folder = out / _START
    if not folder.is_dir():
        with complete_or_absent(folder) as writing:
            make_small_teacher(config, pairs.instructions, writing)
    return str(folder)


def _train(spec: dict[str, Any]) -> None:
    """The function that every worker runs."""
    build = _vision_job if spec["job"] == VISION else _teacher_job
    train_worker(
        lambda config: build(config, spec), spec, spec["job"], seed=lambda config: config.teacher.seed
    )


def _teacher_job(config: JobConfig, spec: dict[str, Any]) -> TrainJob:
    settings = config.teacher.training
    trainer = DeepSpeedTeacher(config.teacher, spec["source"], Path(spec["out"]) / _ENGINE)
    stream = _stream(config, spec["pairs"], settings.pairs_per_step, settings.shift, settings.light)
    return _job(config, trainer, stream, trainer.save, settings.steps)


def _vision_job(config: JobConfig, spec: dict[str, Any]) -> TrainJob:
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, load_model
    from roboalign_ray.judge.teacher.vision import (
        VisionScorer,
        VisionTrainer,
        seeing_model,
        vision_inputs,
        whiten_patches,
    )

    settings, source = config.teacher.training, spec["source"]
    prompter = VideoPrompter(source, config.teacher)
    scorer = VisionScorer(load_model(source, "float32").model.visual, len(prompter.tokenizer))
    # Unchanged videos: with augmentation the encoder learns much more slowly (docs/judge.md).
    stream = _stream(config, spec["pairs"], settings.vision_pairs_per_step, shift=0, light=0)
    train = stream.pairs.split("train", settings.held_out_fraction)
    spread = train[:: -(-len(train) // _WHITENED_ON)]
    examples = [stream.pairs.read(int(position)) for position in spread]
    inputs = vision_inputs(examples, prompter)
    whiten_patches(scorer.visual, inputs["patches"].float())
    trainer = VisionTrainer(prepare_model(scorer), scorer, prompter, config.teacher, device=get_device())

    def save(folder: Path) -> None:
        seeing_model(source, trainer.result().cpu(), inputs, folder)
        copy_processor(source, folder)

    return _job(config, trainer, stream, save, settings.vision_steps)


def _job(
    config: JobConfig, trainer: Any, stream: PairBatches, save: Callable[[Path], None], steps: int
) -> TrainJob:
    settings = config.teacher.training
    return TrainJob(
        trainer=trainer,
        stream=stream,
        step=lambda batch: trainer.step(batch["pairs"]),
        save=save,
        steps=steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def _stream(
    config: JobConfig, pairs: Sequence[str], pairs_per_step: int, shift: float, light: float
) -> PairBatches:
    """This worker's batches: some pairs are replaced by on-the-fly examples, and all are augmented as configured."""
    import ray.train

    settings, context = config.teacher.training, ray.train.get_context()
    rank = context.get_world_rank()
    stream = PairBatches(
        pairs,
        lambda drawn, step: {"pairs": augmentation.batch(fresh.batch(drawn, step), step)},
        pairs_per_step=pairs_per_step,
        held_out_fraction=settings.held_out_fraction,
        replay_ratio=None,
        seed=config.teacher.seed,
        cache_gb=settings.cache_gb,
        rank=rank,
        world_size=context.get_world_size(),
    )
    seed = config.teacher.seed + rank
    fresh = FreshExamples(
        FreshShares(spoiled=settings.spoiled, asked_else=settings.asked_else), stream.pairs, seed
    )
    augmentation = Augmentation(shift, light, seed)
    return stream
