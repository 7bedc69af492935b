"""The one stage that pre-trains a diffusion world model: a denoiser on windows of all its views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import WindowSpec
from roboalign_ray.pipelines.train.train_job import TrainJob
from roboalign_ray.pipelines.train.window_stream import window_feed
from roboalign_ray.world_model.registry import folder_of

if TYPE_CHECKING:
    from roboalign_ray.world_model.diffusion.network import Denoiser


def denoiser_job(config: JobConfig, out: Path) -> TrainJob:
    """One worker's side of the training; the result is a world model's folder."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.metrics.perceptual import load_lpips
    from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
    from roboalign_ray.world_model.diffusion.files import save_denoiser
    from roboalign_ray.world_model.diffusion.pretraining import DiffusionTrainer

    diffusion, device = config.diffusion, get_device()
    settings = diffusion.training
    network, card = _beginning(config)
    perceptual = (
        load_lpips(settings.perceptual_network, device, required=True) if settings.perceptual_weight else None
    )
    trainer = DiffusionTrainer(
        prepare_model(network),
        diffusion,
        ActionScaling.from_card(card, config.episodes.store),
        perceptual,
        device=device,
        seed=config.seed,
        rank=ray.train.get_context().get_world_rank(),
    )
    return TrainJob(
        trainer=trainer,
        stream=window_feed(config, _all_views(config), settings.windows_per_step),
        step=lambda batch: trainer.step(batch["context"], batch["frames"], batch["actions"]),
        save=lambda folder: save_denoiser(folder, trainer.result(), diffusion.noise, card),
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def _beginning(config: JobConfig) -> tuple[Denoiser, ActionCard]:
    """The network that the training begins with, and what its actions mean.

    A model that is trained further keeps its card: its weights know actions on that card's scale.
    """
    from roboalign_ray.world_model.diffusion.files import load_denoiser
    from roboalign_ray.world_model.diffusion.network import Denoiser

    if (start := config.diffusion.training.start) is not None:
        network, described = load_denoiser(folder_of(start))
        return network, described.card
    card = fitted_action_card(open_store(config.episodes.store), config.episodes)
    return Denoiser(config.diffusion.denoiser), card


def _all_views(config: JobConfig) -> WindowSpec:
    """Windows of the views that the denoiser has, at its size."""
    return WindowSpec(
        frames=config.diffusion.window_frames,
        context_range=config.diffusion.training.context_range,
        stride=config.episodes.frame_stride,
        views=config.episodes.views,
        height=config.diffusion.denoiser.height,
        width=config.diffusion.denoiser.width,
    )
