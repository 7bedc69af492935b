"""A recorded rollout as what a denoiser is trained on: per generated clip, what it saw and what it made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.config.diffusion import DenoiserConfig
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.conditioning import Inputs, clip_of, inputs_of
from roboalign_ray.world_model.diffusion.rollout import DiffusionPayload, DiffusionSegment


@dataclass(frozen=True)
class TrainingClip:
    """One clip of all G samples.

    Attributes:
        first: number of its first frame in the rollout.
        version: weight version that generated it.
        inputs: what the network saw, G rows: recorded actions and frames, without the noise that made samples differ.
        clean: the generated clip, float [G, V, n, 3, H, W] in [-1, 1], rounded to uint8 as the rollout went on from it.
    """

    first: int
    version: int
    inputs: Inputs
    clean: Tensor


def training_clips(
    payload: DiffusionPayload, config: DenoiserConfig, scaling: ActionScaling
) -> Iterator[TrainingClip]:
    """The clips of a rollout, in order of time.

    Args:
        config, scaling: of the denoiser that made it.

    Raises:
        ValueError: the payload is damaged, or another denoiser's.
    """
    frames, given = payload.frames(), payload.given
    sizes = (config.views, config.height, config.width, 3)
    if frames.shape[2:] != sizes or payload.actions.shape[-1] != config.action_dims:
        raise ValueError(
            f"frames of shape {frames.shape} and actions of {payload.actions.shape[-1]} dimensions"
        )
    context, start = payload.start
    known = np.broadcast_to(start, (len(frames), *start.shape))
    whole = torch.from_numpy(np.concatenate([known, frames], axis=1))
    actions = torch.from_numpy(
        np.broadcast_to(payload.actions, (len(frames), *payload.actions.shape[-2:])).copy()
    )
    first = 0
    for segment in payload.segments:
        reference = torch.from_numpy(context).expand(len(frames), *sizes)
        if segment.reference is not None:
            reference = whole[:, given + segment.reference]
        yield from _clips(segment, first, given, whole, reference, actions, config, scaling)
        first += segment.frames


def _clips(
    segment: DiffusionSegment,
    first: int,
    given: int,
    frames: Tensor,
    reference: Tensor,
    actions: Tensor,
    config: DenoiserConfig,
    scaling: ActionScaling,
) -> Iterator[TrainingClip]:
    """Those of a segment that begins at frame number `first`."""
    length, oldest = config.clip_frames, given + segment.oldest
    if segment.frames % length:
        raise ValueError(f"a segment of {segment.frames} frames is no whole number of clips of {length}")
    for number in range(first, first + segment.frames, length):
        newest, end = given + number, given + number + length
        inputs = inputs_of(frames[:, oldest:newest], reference, actions[:, oldest : end - 1], config, scaling)
        yield TrainingClip(number, segment.version, inputs, clip_of(frames[:, newest:end]))
