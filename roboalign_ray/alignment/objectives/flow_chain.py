"""The states that stochastic samples went through, made again from their seeds and the weights that sampled them.

    noise of the seed ─► x_1 ─► x_u = m_old + d z ─► … ─► clip         z: the same numbers as in the rollout

A clip's samples go through n denoising steps, of which the last adds no noise; the other n - 1 are trained on. History,
reference and actions are those that the rollout recorded, so every clip is made again from what it really began with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roboalign_ray.alignment.objectives.diffusion_batch import ClipBatch, Origin
from roboalign_ray.alignment.objectives.flow_grpo import gain
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.conditioning import clip_to_bytes
from roboalign_ray.world_model.diffusion.denoising import clip_from
from roboalign_ray.world_model.diffusion.noise import normals
from roboalign_ray.world_model.diffusion.noise_schedule import denoising_steps
from roboalign_ray.world_model.diffusion.rollout import Sampling, diffusion_payload
from roboalign_ray.world_model.diffusion.training_clips import TrainingClip

Denoise = Callable[[ClipBatch], Tensor]  # states and times of a batch to clean states, without gradient


@dataclass(frozen=True)
class ChainStep:
    """Samples of some clips before one step.

    Attributes:
        clips: their states and times; `old` and `base` are predicted from them.
        fresh: the step's fresh noise [B, V, n, 3, H, W].
        slope: see `flow_grpo.log_ratio`.
    """

    clips: ClipBatch
    fresh: Tensor
    slope: float


def sampling_of(groups: Sequence[ScoredGroup]) -> Sampling:
    """How all groups of a step were sampled.

    Raises:
        UserError: differently, or without fresh noise in a step, or with noise that the policy knows nothing of.
    """
    found = {diffusion_payload(group.rollout).sampling for group in groups}
    sampling = next(iter(found))
    whole = not sampling.action_noise and not sampling.history_noise
    if len(found) > 1 or sampling.steps < 2 or not sampling.fresh_noise or not whole:
        raise UserError(
            f"these rollouts were sampled as {sampling}: their steps have no likelihood",
            where=groups[0].rollout.prompt_id,
            remedy="set rollout.diffusion.steps to 2 or more, fresh_noise above 0, and the other noise to 0",
        )
    return sampling


def first_noise(seed: int, clip: TrainingClip) -> tuple[float, Tensor]:
    """The noise that a sample of a clip began with, as a `Draw` of rows at time 1."""
    return 1.0, _normals([Origin(seed, clip.first, clip.version)], tuple(clip.clean.shape[1:]), 0)[0]


def made_again(
    batch: ClipBatch, sampling: Sampling, old: Denoise, base: Denoise
) -> tuple[list[ChainStep], Tensor]:
    """The steps with fresh noise, and the clean states that the samples ended with, [B, V, n, 3, H, W].

    Args:
        batch: rows of `first_noise`.
        old: of the weights that sampled each row.
        base: of the frozen base.
    """
    shape, made = tuple(batch.state.shape[1:]), []
    drawn = {number: _normals(batch.origins, shape, number) for number in range(1, sampling.steps)}
    steps = denoising_steps(
        lambda state, time: old(replace(batch, state=state, time=time)).to(state),
        batch.state,
        sampling.steps,
        level=sampling.fresh_noise,
        fresh=drawn.__getitem__,
    )
    for step in steps:
        last = step.clean
        if step.deviation:
            clips = replace(batch, state=step.state, time=torch.full_like(batch.time, step.now), figures={})
            slope = gain(step.now, step.following, step.deviation) / step.deviation
            made.append(
                ChainStep(replace(clips, old=step.clean, base=base(clips)), drawn[step.number], slope)
            )
    return made, last


def share_apart(clean: Tensor, batch: ClipBatch, scale: float) -> float:
    """Share of a batch's values that were made again differently: by more than one grey level.

    Args:
        clean: the clean states that the samples ended with, made again.
        scale: `NoiseConfig.residual_scale`.
    """
    again, recorded = (
        clip_to_bytes(clip_from(state.cpu(), batch.inputs, scale)).int() for state in (clean, batch.clean)
    )
    apart = ((again - recorded).abs() > 1).float().flatten(1).mean(1)
    return float((apart * batch.live).sum())


def _normals(origins: Sequence[Origin], shape: tuple[int, ...], step: int) -> Tensor:
    rows = [normals([origin.seed], shape, frame=origin.first, step=step)[0] for origin in origins]
    return torch.stack([torch.from_numpy(row) for row in rows])
