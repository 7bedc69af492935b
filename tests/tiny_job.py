"""A whole job of toy size: episodes of a moving square, an untrained tokenizer and LLaMA, and their config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import build_model, save_pretrained

SIZE, FRAMES, EPISODES = 32, 10, 12


def make_tiny_job(folder: Path, **changes) -> JobConfig:
    """Writes store and weights into `folder`; `changes` are merged into the config's sections."""
    sections = {
        "tokenizer_weights": str(folder / "tokenizer"),
        "world_model_weights": str(folder / "world_model"),
        "episodes": {"store": str(folder / "store"), "held_out_fraction": 0.3, "action_bins": 8},
        "tokenizer": {
            "height": SIZE,
            "width": SIZE,
            "downsample": 8,
            "stem": 4,
            "dynamics_patch": 2,
            "channels": [8, 8],
            "blocks": 1,
            "latent": 4,
            "levels": [4, 4],
        },
        "world_model": {
            "hidden": 32,
            "layers": 2,
            "heads": 2,
            "kv_heads": 2,
            "ffn": 48,
            "action_dims": 2,
            "window_frames": 4,
        },
        "rollout": {"horizon": 4, "refresh": {"policy": "swr", "window": 2}},
        "alignment": {
            "updates": 2,
            "prompts_per_update": 4,
            "group_size": 3,
            "minibatch_prompts": 2,
            "learning_rate": 1e-3,
            "evaluate_every": 1,
            "held_out_prompts": 2,
            "held_out_samples": 2,
        },
        "cluster": {
            "object_store_gb": 0.2,
            "rollout": {"workers": 2, "num_cpus": 0.5, "threads": 1, "deadline_s": 120},
            "scorer": {"num_cpus": 0.5, "threads": 1, "deadline_s": 120},
            "learner": {"num_cpus": 0.5, "threads": 1, "deadline_s": 120, "max_restarts": 0},
        },
    }
    for name, value in changes.items():
        old = sections.get(name)
        sections[name] = {**old, **value} if isinstance(old, dict) else value
    config = JobConfig.model_validate(sections)
    write_store((square_episode(n) for n in range(EPISODES)), folder / "store", held_out_fraction=0.3)
    write_weights(config, folder)
    return config


def square_episode(number: int) -> Episode:
    """A bright square that goes where its actions say."""
    generator = np.random.default_rng(number)
    actions = generator.integers(-2, 3, (FRAMES, 2)).astype(np.float32)
    frames = np.full((FRAMES, SIZE, SIZE, 3), 40, np.uint8)
    place = np.array([12, 12])
    for t in range(FRAMES):
        row, column = place.clip(0, SIZE - 8)
        frames[t, row : row + 8, column : column + 8] = (220, 180, 60)
        place = place + actions[t].astype(int)
    return Episode(
        episode_id=f"toy/{number:02d}",
        group_id=f"toy/{number:02d}",
        frames={"front": frames},
        actions=actions,
        instruction="push the square",
        fps=10.0,
        embodiment="toy",
        action_names=("delta_row", "delta_column"),
        action_kinds=("delta", "delta"),
    )


def write_weights(config: JobConfig, folder: Path) -> None:
    torch.manual_seed(0)
    DualBranchTokenizer(config.tokenizer).save(folder / "tokenizer")
    layout = SequenceLayout.from_config(config.tokenizer, config.world_model, config.episodes.action_bins)
    save_pretrained(build_model(config.world_model, layout), layout, folder / "world_model")
    card = fitted_action_card(open_store(folder / "store"), config.episodes)
    ActionBinner.from_card(card, layout.action_bins).save(folder / "world_model")
    card.save(folder / "world_model")
