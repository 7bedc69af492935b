"""What the denoiser sees of a rollout so far. Training and sampling use this one function, so they cannot differ.

    frames 0 … m-1 (given and generated), uint8     actions 0 … m-1+n-1, actions[t] leads from frame t to t+1
              │  m-1, m-2, m-3, m-6 …                          │  the last ones before frame m-1, then the clip's
              ▼                                                ▼
    Inputs    history [B, V, h, 3, H, W] · reference [B, V, 3, H, W] · actions [B, past + n, A]

A frame from before the oldest known one is replaced by the oldest known one, an action from before it by zeros.
Generated frames are rounded to uint8 before they are history, so the history is exactly what a decoder shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roboalign_ray.config.diffusion import DenoiserConfig
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling


@dataclass(frozen=True)
class Inputs:
    """What the denoiser sees beside the noisy clip.

    Attributes:
        history: float [B, V, h, 3, H, W] in [-1, 1], newest first.
        reference: float [B, V, 3, H, W] in [-1, 1].
        actions: float [B, past + n, A], scaled.
        level: float [B], standard deviation of the noise on the history; 0 outside training.
    """

    history: Tensor
    reference: Tensor
    actions: Tensor
    level: Tensor

    @property
    def newest(self) -> Tensor:
        """The newest known frame, float [B, V, 1, 3, H, W] in [-1, 1]."""
        return self.history[:, :, :1]

    def with_noise(self, level: Tensor, noise: Tensor) -> Inputs:
        """The same with noise of standard deviation `level` [B] on the history; `noise` is standard normal."""
        noisy = self.history + level.view(-1, 1, 1, 1, 1, 1) * noise
        return replace(self, history=noisy, level=level)


def inputs_of(
    frames: Tensor,
    reference: Tensor,
    actions: Tensor,
    config: DenoiserConfig,
    scaling: ActionScaling,
) -> Inputs:
    """The denoiser's inputs for the clip after the last known frame.

    Args:
        frames: known frames uint8 [B, m, V, H, W, 3], oldest first, m at least 1.
        reference: a frame uint8 [B, V, H, W, 3] that stays the same over the rollout.
        actions: [B, m - 1 + n, A] in physical units; actions[t] leads from frame t to frame t + 1.
        config: what the network sees; it predicts n = `clip_frames` frames.
        scaling: of the actions.

    Raises:
        ValueError: frames and actions are not as many as the clip needs.
    """
    return Inputs(
        history=history_of(frames, config),
        reference=to_signed(reference),
        actions=actions_of(actions, frames.shape[1], config, scaling),
        level=torch.zeros(len(frames), device=frames.device),
    )


def history_of(frames: Tensor, config: DenoiserConfig) -> Tensor:
    """History float [B, V, h, 3, H, W] of known frames uint8 [B, m, V, H, W, 3]."""
    newest = frames.shape[1] - 1
    return to_signed(frames[:, [max(0, newest - back) for back in config.history]]).movedim(1, 2)


def actions_of(actions: Tensor, known: int, config: DenoiserConfig, scaling: ActionScaling) -> Tensor:
    """Scaled actions float [B, past + n, A] of [B, m - 1 + n, A] beside `known` = m frames; see `inputs_of`.

    Raises:
        ValueError: they are not as many as the clip needs.
    """
    clip, past = config.clip_frames, config.past_actions
    if actions.shape[1] != known - 1 + clip:
        raise ValueError(f"{actions.shape[1]} actions for {known} frames and a clip of {clip}")
    scaled = scaling(actions[:, max(0, known - 1 - past) :])
    missing = past + clip - scaled.shape[1]
    if missing:
        scaled = torch.cat([scaled.new_zeros(len(scaled), missing, scaled.shape[2]), scaled], dim=1)
    return scaled


def to_signed(frames: Tensor) -> Tensor:
    """Frames uint8 [..., H, W, 3] as float [..., 3, H, W] in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_bytes(frames: Tensor) -> Tensor:
    """Frames float [..., 3, H, W] rounded to the nearest uint8 [..., H, W, 3]; inverse of `to_signed`."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def clip_to_bytes(clip: Tensor) -> Tensor:
    """A predicted clip float [B, V, n, 3, H, W] as frames uint8 [B, n, V, H, W, 3], as they become history."""
    return to_bytes(clip).movedim(1, 2)


def clip_of(frames: Tensor) -> Tensor:
    """Frames uint8 [B, n, V, H, W, 3] as a clip float [B, V, n, 3, H, W] in [-1, 1]."""
    return to_signed(frames).movedim(1, 2)
