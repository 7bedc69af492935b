"""The stage that trains an inverse dynamics model, on windows of its views, and measures it on held-out clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from roboalign_ray.config import EpisodesConfig, JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import WindowSpec, held_out_windows
from roboalign_ray.pipelines.train.train_job import TrainJob
from roboalign_ray.pipelines.train.window_stream import window_feed


def inverse_dynamics_job(config: JobConfig, out: Path) -> TrainJob:
    """One worker's side of the training; the result is a folder with the model and its measurement."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.inverse_dynamics.measurement import measure
    from roboalign_ray.inverse_dynamics.model import InverseModel
    from roboalign_ray.inverse_dynamics.network import InverseDynamics
    from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
    from roboalign_ray.inverse_dynamics.training import InverseTrainer

    inverse, device, views = config.inverse_dynamics, get_device(), named_views(config.episodes)
    settings = inverse.training
    store = open_store(config.episodes.store)
    card = fitted_action_card(store, config.episodes)
    trainer = InverseTrainer(
        prepare_model(InverseDynamics(inverse.network, max(1, len(views)), card.dims)),
        settings,
        ActionNormaliser.from_card(card, config.episodes.store),
        device=device,
        seed=config.seed,
        rank=ray.train.get_context().get_world_rank(),
    )

    def trained() -> InverseModel:
        return InverseModel(trainer.result(), views or ("",), card, device=device)

    def measured(folder: Path) -> Mapping[str, float]:
        clips, actions = held_out_clips(config)
        found = measure(trained(), clips, actions, inverse.gate, seed=config.seed)
        found.save(folder)
        return found.figures()

    return TrainJob(
        trainer=trainer,
        stream=window_feed(config, _windows(config, inverse.network.frames), settings.windows_per_step),
        step=lambda batch: trainer.step(_all_views(batch["frames"], views), batch["actions"]),
        save=lambda folder: trained().save(folder),
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        measure=measured,
    )


def named_views(episodes: EpisodesConfig) -> tuple[str, ...]:
    """Views of a job by name; () is the first view of each episode."""
    return episodes.views or (() if episodes.view is None else (episodes.view,))


def held_out_clips(config: JobConfig) -> tuple[np.ndarray, np.ndarray]:
    """The held-out clips that a model is measured on.

    Returns:
        frames uint8 [N, T + 1, V, H, W, 3]; actions float32 [N, T, A].

    Raises:
        UserError: no held-out episode is long enough.
    """
    gate = config.inverse_dynamics.gate
    windows = held_out_windows(
        open_store(config.episodes.store),
        _windows(config, gate.clip_frames),
        gate.clips,
        fraction=config.episodes.held_out_fraction,
        seed=config.seed,
    )
    frames = _all_views(np.stack([window.frames for window in windows]), named_views(config.episodes))
    return frames, np.stack([window.actions[:-1] for window in windows])


def _windows(config: JobConfig, frames: int) -> WindowSpec:
    network = config.inverse_dynamics.network
    return WindowSpec(
        frames=frames,
        stride=config.episodes.frame_stride,
        views=named_views(config.episodes),
        height=network.height,
        width=network.width,
    )


def _all_views(frames: np.ndarray, views: tuple[str, ...]) -> np.ndarray:
    """Frames with an axis of views, which windows of each episode's first view lack."""
    return frames if views else frames[:, :, None]
