"""The noise schedule: a straight path between a clean clip and noise, in terms of the predicted clean clip.

    x_t = (1 - t) x_0 + t e,   t from 1 (noise alone: the signal is exactly zero) to 0 (clean)

This is rectified flow (arXiv 2209.03003). With velocity v = e - x_0 one has x_0 = x_t - t v, so a network that predicts
x_0 and one that predicts v differ by an affine map at fixed t. Zero signal at t = 1 matters: where a trace of the
target is left, a network reads the target from it and ignores the actions (cf. arXiv 2305.08891).

A sample follows the ODE dx = v dt, or the SDE of Flow-GRPO (arXiv 2505.05470), whose marginals are the same:

    dx = [v + s_t^2 / (2 t) (x + (1 - t) v)] dt + s_t dw,   s_t = a sqrt(t / (1 - t))

s_1 is infinite. So it is not stepped by Euler and Maruyama but as DDIM does (arXiv 2010.02502), on this path [ours]:

    x_u = (1 - u) x_0 + sqrt(u^2 - d^2) e + d z,   d^2 = (a^2 / 2) u^2 (1 - q^2),   q = (1 - t) u / ((1 - u) t)

from t to u < t, with the predicted x_0, the noise e = (x_t - (1 - t) x_0) / t that it leaves, and fresh noise z. For
small steps d^2 becomes s_t^2 (t - u) and the drift that of the SDE. x_0 and noise have the coefficients of the path in
every step, however long. a = 0 is the ODE's Euler step; a = sqrt(2) forgets e as far as the path allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


def fresh_deviation(now: float, following: float, level: float) -> float:
    """Standard deviation d of the fresh noise in a step between two times; 0 for the last step, which ends at 0.

    Args:
        level: a, from 0 to sqrt(2).
    """
    if not level or not following:
        return 0.0
    kept = (1 - now) * following / ((1 - following) * now)
    return level * following * math.sqrt((1 - kept**2) / 2)


def step_mean(clean: Tensor, state: Tensor, now: float, following: float, deviation: float) -> Tensor:
    """Mean of the state after a step with fresh noise of some deviation, given the predicted clean clip."""
    left = (state - (1 - now) * clean) / now
    return (1 - following) * clean + math.sqrt(following**2 - deviation**2) * left


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a sample.

    Attributes:
        number: from 1 on.
        now, following: times before and after it.
        deviation: of its fresh noise.
        state: x_t before it, [B, ...].
        clean: the clean clip predicted from that, [B, ...].
    """

    number: int
    now: float
    following: float
    deviation: float
    state: Tensor
    clean: Tensor


def denoising_steps(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    *,
    level: float = 0.0,
    fresh: Callable[[int], Tensor] | None = None,
) -> Iterator[DenoisingStep]:
    """The steps from noise to a clean clip, which is the last one's prediction.

    Args:
        denoise: x_t [B, ...] and t [B] to the predicted clean clip.
        noise: x_1 [B, ...], standard normal.
        steps: denoising steps; one returns the first prediction.
        level: a, see above; 0 follows the ODE.
        fresh: standard normal [B, ...] of a step's number, for a level above 0.
    """
    state = noise
    for number, (now, following) in enumerate(pairwise([*times(steps), 0.0]), 1):
        t = torch.full((len(noise),), now, dtype=noise.dtype, device=noise.device)
        clean = denoise(state, t)
        deviation = fresh_deviation(now, following, level)
        yield DenoisingStep(number, now, following, deviation, state, clean)
        if deviation and fresh is not None:
            state = step_mean(clean, state, now, following, deviation) + deviation * fresh(number)
        elif following:
            state = state + (following - now) * velocity_of(clean, state, t)


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    *,
    level: float = 0.0,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """A clean clip [B, ...]; arguments as for `denoising_steps`."""
    *_, last = denoising_steps(denoise, noise, steps, level=level, fresh=fresh)
    return last.clean


def loss_weight(time: Tensor, limit: float) -> Tensor:
    """(1 + s^2) / s^2 with the noise-to-signal ratio s = t / (1 - t), at most `limit`; [B]. At t = 1 it is 1."""
    signal, noise = (1 - time).square(), time.square()
    return ((signal + noise) / noise.clamp_min(1e-12)).clamp_max(limit)


def _as(time: Tensor, like: Tensor) -> Tensor:
    return time.view(-1, *[1] * (like.ndim - 1))
