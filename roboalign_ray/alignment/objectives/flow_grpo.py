"""Flow-GRPO (arXiv 2505.05470) in clean clips: GRPO on the Gaussian steps of a stochastic sampler.

A step from time t to u draws x_u from N(m, d^2), with a mean that is affine in the predicted clean clip x
(`noise_schedule.step_mean`): m = g x + (what x_t alone gives), g = (1 - u) - sqrt(u^2 - d^2) (1 - t) / t. The sampled
x_u is m_old + d z, with the fresh noise z that follows from the sample's seed. So with D values, and logarithms of
densities as means over them, as the public code takes them,

    log p_old  = -mean z^2 / 2 + constant
    log ratio  = log p - log p_old = mean[ -(m_old - m)^2 / (2 d^2)  -  z (m_old - m) / d ],   m_old - m = g (x_old - x)
    KL(p ‖ p_base) = mean (m - m_base)^2 / (2 d^2)                      equal deviations; exact
    L = mean over samples, clips and steps of  -min(ratio A, clip(ratio, 1 - e, 1 + e) A)  +  c KL

Derivative by a predicted value x where ratio = 1 and x = x_old: -A g z / (D d), the score of the step, and nothing for
A = 0.

Neither states nor noise nor log-probabilities are recorded with a rollout: all of them follow from its seeds and from
the weights that sampled it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from roboalign_ray.alignment.objectives.diffusion_nft import Predictions, distances
from roboalign_ray.alignment.objectives.protocol import Metrics


def gain(now: float, following: float, deviation: float) -> float:
    """g: what a step's mean moves by, when the predicted clean clip moves by 1. Above 0."""
    return (1 - following) - math.sqrt(following**2 - deviation**2) * (1 - now) / now


def log_ratio(trained: Tensor, old: Tensor, fresh: Tensor, slope: float) -> Tensor:
    """Mean logarithm of p / p_old per value, of each sample: [B], with gradient.

    Args:
        trained, old: predicted clean clips [B, ...].
        fresh: z.
        slope: g / d.
    """
    apart = slope * (old - trained)
    return -(apart.square() / 2 + fresh * apart).flatten(1).mean(1)


def step_kl(trained: Tensor, base: Tensor, slope: float) -> Tensor:
    """Mean KL(p ‖ p_base) per value, of each sample: [B], with gradient. Arguments as for `log_ratio`."""
    return (slope * (trained - base)).square().flatten(1).mean(1) / 2


def flow_grpo_loss(
    clips: Predictions,
    fresh: Tensor,
    slope: float,
    advantages: Tensor,
    live: Tensor,
    *,
    clip: float,
    bound: float,
    kl_coefficient: float,
    count: int,
) -> tuple[Tensor, Metrics]:
    """The loss's share of some samples at one step.

    Args:
        clips: predictions at the states before the step; `old` is of the policy that sampled.
        fresh, slope: see `log_ratio`.
        advantages, live: [B]; `live` is 0 for samples that do not count.
        clip: e.
        bound: advantages beyond it count as it.
        kl_coefficient: c.
        count: samples x clips x steps of the whole optimizer step.

    Returns:
        Loss and detached metrics; both add up to the step's means.
    """
    kept = advantages.clamp(-bound, bound)
    ratio = log_ratio(clips.trained, clips.old, fresh, slope).exp()
    gained = torch.minimum(ratio * kept, ratio.clamp(1 - clip, 1 + clip) * kept)
    kl = (step_kl(clips.trained, clips.base, slope) * live).sum() / count
    policy = -(gained * live).sum() / count
    loss = policy + kl_coefficient * kl
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip).to(live.dtype)
        metrics = {
            "loss": loss.detach(),
            "policy_loss": policy.detach(),
            "reference_kl": kl.detach(),
            "clip_fraction": (outside * live).sum() / count,
            "ratio_distance_max": ((ratio - 1).abs() * live).max(),
            **distances(clips, live, count),
        }
    return loss, metrics
