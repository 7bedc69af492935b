"""A tiny diffusion world model, and scored rollouts of it that nothing generated: random frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config.diffusion import DenoiserConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.diffusion.files import save_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.packed_frames import PackedFrames
from roboalign_ray.world_model.diffusion.rollout import DiffusionPayload, DiffusionSegment, Sampling
from roboalign_ray.world_model.protocol import Rollout, RolloutCost

VIEWS, SIDE, ACTIONS, CLIP = 2, 8, 2, 2
DENOISER = DenoiserConfig(
    views=VIEWS,
    height=SIDE,
    width=SIDE,
    patch=2,
    channels=(8, 8),
    blocks=1,
    heads=2,
    attention_levels=1,
    history=(0, 2),
    clip_frames=CLIP,
    past_actions=1,
    action_dims=ACTIONS,
    largest_motion=2.0,
)


def diffusion_folder(folder: Path) -> Path:
    """Random weights everywhere, so that every part of the network matters."""
    torch.manual_seed(0)
    network = Denoiser(DENOISER)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape)
    statistics = ActionStatistics.of(np.random.default_rng(0).uniform(-1, 1, (50, ACTIONS)))
    card = ActionCard.make(("x", "y"), ("delta", "delta"), statistics=statistics)
    save_denoiser(folder, network, NoiseConfig(residual_scale=0.3), card)
    return folder


def diffusion_group(
    seed: int,
    rewards: Sequence[float | None],
    versions: Sequence[int] = (0, 1),
    steps: int = 2,
    fresh_noise: float = 0.0,
) -> ScoredGroup:
    """A segment of one clip per version; None is a sample that could not be scored."""
    generator, samples = np.random.default_rng(seed), len(rewards)
    horizon = CLIP * len(versions)

    def frames(*shape: int) -> np.ndarray:
        return generator.integers(0, 256, (*shape, VIEWS, SIDE, SIDE, 3), dtype=np.uint8)

    known = frames(1, 3)  # the context and two given frames
    payload = DiffusionPayload(
        segments=tuple(DiffusionSegment(CLIP, version, oldest=-2) for version in versions),
        known=PackedFrames.of(known),
        actions=generator.uniform(-1, 1, (1 + horizon, ACTIONS)).astype(np.float32),
        packed=PackedFrames.of(frames(samples, horizon), before=known[0, -1]),
        sampling=Sampling(steps, fresh_noise=fresh_noise),
    )
    seeds = tuple(range(10 * seed, 10 * seed + samples))
    rollout = Rollout(f"p{seed}", "", seeds, payload, RolloutCost(np.zeros(horizon)))
    scores = tuple(Failed("lost") if reward is None else Scored(reward) for reward in rewards)
    return ScoredGroup(rollout, scores)
