"""A whole job of toy size about a diffusion world model of two views: episodes, an untrained denoiser, their config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiny_denoiser import tiny_network, tiny_sizes
from tiny_job import EPISODES, SIZE, make_tiny_job, square_episode

from roboalign_ray.config import JobConfig, NoiseConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.world_model.diffusion.files import save_denoiser

VIEWS = ("front", "below")


def make_diffusion_job(folder: Path) -> JobConfig:
    """Writes a store of two views and a denoiser into `folder`, beside the store and the weights of the tiny job.

    The second camera sees the first one's pictures upside down. Groups of four samples continue a history of up to
    three self-generated frames; an alignment makes two optimizer steps.
    """
    sizes = tiny_sizes(views=len(VIEWS), height=SIZE, width=SIZE, history=(0, 1))
    config = make_tiny_job(
        folder,
        world_model_kind="diffusion",
        world_model_weights=str(folder / "denoiser"),
        episodes={"store": str(folder / "views"), "views": VIEWS},
        diffusion={
            "denoiser": sizes.public(),
            "noise": {"steps": 1},
            "training": {"perceptual_weight": 0, "log_every": 1, "checkpoint_every": 1, "ema_decay": 0},
        },
        rollout={
            "refresh": {"policy": "none"},
            "diffusion": {"action_noise": 0.3},
            "branching": {"first": 2, "most": 4, "groups_per_clip": 2},
        },
        alignment={
            "objective": "diffusion_nft",
            "minibatch_prompts": 4,
            "group_size": 4,
            "evaluate_every": 2,
            "diffusion": {"lora": {"rank": 2, "targets": ["down", "up"]}},
        },
        evaluation={"episodes": 3, "horizon": 8, "windows": [2], "bootstrap_resamples": 50},
    )
    both = (
        replace(e, frames={**e.frames, "below": e.frames["front"][:, ::-1]})
        for e in (square_episode(number) for number in range(EPISODES))
    )
    write_store(both, folder / "views", held_out_fraction=0.3)
    card = fitted_action_card(open_store(folder / "views"), config.episodes)
    save_denoiser(folder / "denoiser", tiny_network(sizes), NoiseConfig(steps=1), card)
    return config
