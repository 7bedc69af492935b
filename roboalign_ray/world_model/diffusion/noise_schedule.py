"""The noise schedule: a straight path between a clean clip and noise, in terms of the predicted clean clip.

    x_t = (1 - t) x_0 + t e,   t from 1 (noise alone: the signal is exactly zero) to 0 (clean)

This is rectified flow (arXiv 2209.03003). With velocity v = e - x_0 one has x_0 = x_t - t v, so a network that predicts
x_0 and one that predicts v differ by an affine map at fixed t. Zero signal at t = 1 matters: where a trace of the
target is left, a network reads the target from it and ignores the actions (cf. arXiv 2305.08891).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def noisy(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t of a clean clip [B, ...] and noise of its shape; `time` [B] in [0, 1]."""
    t = _as(time, clean)
    return (1 - t) * clean + t * noise


def velocity_of(clean: Tensor, state: Tensor, time: Tensor) -> Tensor:
    """The velocity (x_t - x_0) / t that a predicted clean clip stands for; t > 0."""
    return (state - clean) / _as(time, clean)


def clean_of(velocity: Tensor, state: Tensor, time: Tensor) -> Tensor:
    """The clean clip x_t - t v that a velocity stands for."""
    return state - _as(time, state) * velocity


def times(steps: int) -> list[float]:
    """The times at which a sample of `steps` steps is denoised, from 1 down; the last step ends at 0."""
    return [1 - step / steps for step in range(steps)]


def sample(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler steps from noise to a clean clip.

    Args:
        denoise: x_t [B, ...] and t [B] to the predicted clean clip.
        noise: x_1 [B, ...], standard normal.
        steps: denoising steps; one returns the first prediction.
    """
    state, clean = noise, noise
    schedule = [*times(steps), 0.0]
    for now, following in pairwise(schedule):
        t = torch.full((len(noise),), now, dtype=noise.dtype, device=noise.device)
        clean = denoise(state, t)
        if following > 0:
            state = state + (following - now) * velocity_of(clean, state, t)
    return clean


def loss_weight(time: Tensor, limit: float) -> Tensor:
    """(1 + s^2) / s^2 with the noise-to-signal ratio s = t / (1 - t), at most `limit`; [B]. At t = 1 it is 1."""
    signal, noise = (1 - time).square(), time.square()
    return ((signal + noise) / noise.clamp_min(1e-12)).clamp_max(limit)


def _as(time: Tensor, like: Tensor) -> Tensor:
    return time.view(-1, *[1] * (like.ndim - 1))
