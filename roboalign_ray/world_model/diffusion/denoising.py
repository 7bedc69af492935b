"""From noise to a clip: the denoiser on its own scale, and the sampler.

What is denoised is the clip's change from the newest known frame, in units of `NoiseConfig.residual_scale`. The noise
is standard normal, so a state [B, V, n, 3, H, W] is of order 1, whatever the pictures are. `residual_of` and
`clip_from` lead from one scale to the other. Losses that compare velocities or clean states work on states.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from roboalign_ray.world_model.diffusion.conditioning import Inputs
from roboalign_ray.world_model.diffusion.network import Denoiser, Seen
from roboalign_ray.world_model.diffusion.noise_schedule import sample


def residual_of(clip: Tensor, inputs: Inputs, scale: float) -> Tensor:
    """The clean state of a clip float [B, V, n, 3, H, W] in [-1, 1]."""
    return (clip - inputs.newest) / scale


def clip_from(residual: Tensor, inputs: Inputs, scale: float) -> Tensor:
    """Inverse of `residual_of`."""
    return inputs.newest + scale * residual


def predict_clip(network: nn.Module, state: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
    """The clean clip float [B, V, n, 3, H, W] in [-1, 1] that the network sees behind a noisy state at `time` [B]."""
    return network(state, time, inputs.history, inputs.reference, inputs.actions, inputs.level)


def predict_state(network: nn.Module, state: Tensor, time: Tensor, inputs: Inputs, scale: float) -> Tensor:
    """The same as a clean state."""
    return residual_of(predict_clip(network, state, time, inputs), inputs, scale)


def sample_clip(network: Denoiser, noise: Tensor, inputs: Inputs, *, steps: int, scale: float) -> Tensor:
    """A clip from noise.

    Args:
        noise: standard normal [B, V, n, 3, H, W].
        steps: denoising steps.
        scale: `NoiseConfig.residual_scale`.

    Returns:
        float [B, V, n, 3, H, W] in [-1, 1]; `conditioning.clip_to_bytes` makes frames of it.
    """
    with torch.no_grad():
        seen = network.seen(inputs.history, inputs.reference)
        return sample_from(network, noise, seen, inputs.actions, inputs.level, steps=steps, scale=scale)


def sample_from(
    network: Denoiser,
    noise: Tensor,
    seen: Seen,
    actions: Tensor,
    level: Tensor,
    *,
    steps: int,
    scale: float,
    fresh_noise: float = 0.0,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """As `sample_clip`, with the known frames as `Denoiser.seen` gives them, and actions and level as in `Inputs`.

    Args:
        fresh_noise, fresh: `level` and `fresh` of `noise_schedule.sample`.
    """
    newest = seen.newest.unflatten(0, noise.shape[:2]).unsqueeze(2)

    def denoise(state: Tensor, time: Tensor) -> Tensor:
        return (network.denoise(state, time, seen, actions, level) - newest) / scale

    return newest + scale * sample(denoise, noise, steps, level=fresh_noise, fresh=fresh)
