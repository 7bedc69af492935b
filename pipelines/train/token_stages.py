"""The two stages that pre-train a token world model: the tokenizer, then the transformer on its tokens."""

from __future__ import annotations

from pathlib import Path

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import WindowSpec
from roboalign_ray.pipelines.train.train_job import SUMMARY, TrainJob
from roboalign_ray.pipelines.train.window_stream import window_feed


def tokenizer_job(config: JobConfig, out: Path) -> TrainJob:
    """One worker's side of the tokenizer's training."""
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
        stream=window_feed(
            config,
            _view(config, settings.frames_per_window, settings.context_range),
            settings.windows_per_step,
        ),
        step=lambda batch: trainer.step(batch["context"], batch["frames"]),
        save=lambda folder: trainer.result().save(folder),
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def world_model_job(config: JobConfig, out: Path) -> TrainJob:
    """One worker's side of the transformer's training; the tokenizer is this run's, or the configured one.

    Args:
        out: run directory.
    """
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
        stream=window_feed(
            config,
            _view(config, config.world_model.window_frames, settings.context_range),
            settings.windows_per_step,
        ),
        step=lambda batch: trainer.step(batch["context"], batch["frames"], binner.to_bins(batch["actions"])),
        save=save,
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        tokenizer=(folder, source),
    )


def _view(config: JobConfig, frames: int, context_range: int) -> WindowSpec:
    """Windows of one view at the tokenizer's size."""
    return WindowSpec(
        frames=frames,
        context_range=context_range,
        stride=config.episodes.frame_stride,
        view=config.episodes.view,
        height=config.tokenizer.height,
        width=config.tokenizer.width,
    )
