"""A diffusion world model of a few thousand parameters, untrained but not still: every part has a say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from roboalign_ray.config import DenoiserConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.world_model.diffusion.files import save_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser

SIDE, VIEWS = 16, 2


def tiny_sizes(**changes: Any) -> DenoiserConfig:
    sizes: dict[str, Any] = {
        "views": VIEWS,
        "height": SIDE,
        "width": SIDE,
        "channels": (8, 8),
        "blocks": 1,
        "heads": 2,
        "attention_levels": 1,
        "history": (0, 1, 3),
        "past_actions": 2,
        "action_dims": 2,
        "largest_motion": 4.0,
    }
    return DenoiserConfig.model_validate({**sizes, **changes})


def tiny_network(sizes: DenoiserConfig, seed: int = 0) -> Denoiser:
    """Weights that were initialised as zeros are random too, so that no part is without effect."""
    torch.manual_seed(seed)
    network = Denoiser(sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.std() < 0.01 or not parameter.abs().sum():
                parameter.normal_(std=0.2)
    return network


def unit_card(dims: int) -> ActionCard:
    """Actions from -2 to 2 in each dimension."""
    figures = {"p01": -2.0, "p99": 2.0, "mean": 0.0, "std": 1.0, "min": -3.0, "max": 3.0}
    statistics = ActionStatistics(frames=100, **{name: (value,) * dims for name, value in figures.items()})
    return ActionCard(
        names=tuple(f"action {n}" for n in range(dims)),
        units=("",) * dims,
        kinds=("unknown",) * dims,
        bounds=(None,) * dims,
        statistics=statistics,
    )


def write_tiny_denoiser(folder: Path, *, steps: int = 2, seed: int = 0, **changes: Any) -> Path:
    sizes = tiny_sizes(**changes)
    save_denoiser(folder, tiny_network(sizes, seed), NoiseConfig(steps=steps), unit_card(sizes.action_dims))
    return folder
