"""Pre-training as two Ray Train jobs over one episode store: first the tokenizer, then the world model.

Each job streams windows through Ray Data, checkpoints optimizer, weight average and stream position, and resumes
from them when it is started again with the same output folder. The results are written to `out/tokenizer` and
`out/world_model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.train_job import (
    SUMMARY,
    TrainJob,
    check_shares,
    run_train_job,
    train_worker,
)

Stage = Literal["tokenizer", "world_model"]
STAGES: tuple[Stage, ...] = ("tokenizer", "world_model")
_SHOWN = ("loss", "accuracy", "psnr_context", "psnr_dynamics")  # metrics beside the progress bar


@one_job
def run_pretrain(
    config: JobConfig, out: Path, stages: tuple[Stage, ...] = STAGES, *, quiet: bool = False
) -> dict[str, Any]:
    """Train the stages in order. A stage that is complete in `out` is not run again; an interrupted one resumes.

    Args:
        config: the job; `tokenizer_weights` gives the tokenizer if its stage is left out.
        out: run directory.
        quiet: show no progress on the terminal.

    Returns:
        per stage: its last metrics, seconds, and hardware.

    Raises:
        UserError: the store cannot be read or is of another robot, or there is no tokenizer for the world model.
        RoleFailure: a stage failed more often than its workers may be restarted.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    out = out.absolute()
    config = check_ready(Preflight("pretrain", config, out, stages=stages))
    with start_ray(config.cluster, worker_logs=False):
        return {stage: _run_stage(config, out, stage, quiet) for stage in stages}


def _run_stage(config: JobConfig, out: Path, stage: Stage, quiet: bool) -> dict[str, Any]:
    return run_train_job(
        _train,
        {"config": config.model_dump(), "stage": stage},
        out,
        stage,
        role=config.cluster.trainer,
        steps=(config.tokenizer_training if stage == "tokenizer" else config.pretraining).steps,
        shown=_SHOWN,
        quiet=quiet,
    )


def _train(spec: dict[str, Any]) -> None:
    """The function that every worker of a stage runs."""
    stage = spec["stage"]

    def build(config: JobConfig) -> TrainJob:
        return _tokenizer_job(config) if stage == "tokenizer" else _world_model_job(config, Path(spec["out"]))

    train_worker(build, spec, stage, seed=lambda config: config.seed)


def _stream(config: JobConfig, frames: int, context_range: int, windows: int):
    import ray.train

    from roboalign_ray.episodes.windows import WindowSpec
    from roboalign_ray.pipelines.train.batch_feed import Feed
    from roboalign_ray.pipelines.train.window_stream import WindowStream

    context = ray.train.get_context()
    workers = context.get_world_size()
    check_shares(windows, "windows", workers, where="windows_per_step")
    spec = WindowSpec(
        frames=frames,
        context_range=context_range,
        stride=config.episodes.frame_stride,
        view=config.episodes.view,
        height=config.tokenizer.height,
        width=config.tokenizer.width,
    )
    stream = WindowStream(
        config.episodes.store,
        config.episodes,
        spec,
        windows // workers,
        config.seed,
        rank=context.get_world_rank(),
        world_size=workers,
    )
    return Feed(stream)


def _tokenizer_job(config: JobConfig) -> TrainJob:
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.metrics.perceptual import load_lpips
    from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
    from roboalign_ray.tokenizer.training import TokenizerTrainer

    settings, device = config.tokenizer_training, get_device()
    perceptual = (
        load_lpips(settings.perceptual_network, device, required=True) if settings.perceptual_weight else None
    )
    trainer = TokenizerTrainer(
        prepare_model(DualBranchTokenizer(config.tokenizer)),
        settings,
        perceptual,
        device=device,
        seed=config.seed,
    )
    return TrainJob(
        trainer=trainer,
        stream=_stream(config, settings.frames_per_window, settings.context_range, settings.windows_per_step),
        step=lambda batch: trainer.step(batch["context"], batch["frames"]),
        save=lambda folder: trainer.result().save(folder),
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def _world_model_job(config: JobConfig, out: Path) -> TrainJob:
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.pipelines.cluster.weight_folders import tokenizer_folder
    from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
    from roboalign_ray.world_model.registry import TOKEN, write_description
    from roboalign_ray.world_model.token.layout import SequenceLayout
    from roboalign_ray.world_model.token.pretraining import SlotPredictor, WorldModelTrainer
    from roboalign_ray.world_model.token.transformer import build_model, save_pretrained

    settings, device = config.pretraining, get_device()
    own = out / "tokenizer"
    folder, source = own, "this run"
    if not (own / SUMMARY).is_file():
        folder, source = tokenizer_folder(config), config.tokenizer_weights
    tokenizer = DualBranchTokenizer.load(folder).to(device)
    layout = SequenceLayout.from_config(tokenizer.config, config.world_model, config.episodes.action_bins)
    card = fitted_action_card(open_store(config.episodes.store), config.episodes)
    binner = ActionBinner.from_card(card, config.episodes.action_bins)
    predictor = SlotPredictor(build_model(config.world_model, layout), layout)
    trainer = WorldModelTrainer(prepare_model(predictor), tokenizer, layout, settings, device=device)

    def save(target: Path) -> None:
        save_pretrained(trainer.result(), layout, target)
        binner.save(target)
        card.save(target)
        write_description(target, TOKEN, folder, final=out / "world_model")

    return TrainJob(
        trainer=trainer,
        stream=_stream(
            config, config.world_model.window_frames, settings.context_range, settings.windows_per_step
        ),
        step=lambda batch: trainer.step(batch["context"], batch["frames"], binner.to_bins(batch["actions"])),
        save=save,
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        tokenizer=(folder, source),
    )
