"""DiffusionNFT (arXiv 2509.16117) for a network that predicts the clean clip.

Published for velocities, with x_t = (1 - t) x_0 + t e and x_0 = x_t - t v:

    v+ = b v + (1 - b) v_old,   v- = (1 + b) v_old - b v,   x_0± = x_t - t v±,   r = clip(A / 5, -1, 1) / 2 + 1/2
    L = 5 mean[ (r / b) |x_0+ - x_0|^2 / w+  +  ((1 - r) / b) |x_0- - x_0|^2 / w- ]  +  c mean |v - v_base|^2
    w± = mean |x_0± - x_0| without gradient, at least 1e-5

x_0 = x_t - t v is affine in v at fixed x_t and t, and the mixtures' coefficients add up to 1. So the clean predictions
mix alike, without t:

    x_0+ = b x + (1 - b) x_old,   x_0- = (1 + b) x_old - b x        (x, x_old: predicted clean clips)

while v - v_base = -(x - x_base) / t: the regulariser is c mean |x - x_base|^2 / t^2. Times must stay away from 0.

Derivative by a predicted value x of one sample of D values, weights w± held:

    dL/dx = (10 / D) [ r (x_0+ - x_0) / w+  -  (1 - r) (x_0- - x_0) / w- ]  +  2 c (x - x_base) / (D t^2)

Where x = x_old, both errors are x_old - x_0: the first part is (10 / D) (2 r - 1) (x_old - x_0) / w. It vanishes for
A = 0, and the regulariser alone is left. Away from x_old and with A = 0 the first part pulls x back to x_old.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roboalign_ray.alignment.objectives.protocol import Metrics

LEAST_WEIGHT = 1e-5  # of w±


@dataclass(frozen=True)
class Predictions:
    """Clean clips of B samples, float32 [B, ...] alike.

    Attributes:
        clean: what was sampled, x_0.
        trained: prediction of the policy that is trained; carries the gradient.
        old, base: predictions of the old policy and of the frozen base, at the same noisy clips.
        time: [B], above 0.
    """

    clean: Tensor
    trained: Tensor
    old: Tensor
    base: Tensor
    time: Tensor


def optimality(advantages: Tensor, bound: float) -> Tensor:
    """r in [0, 1] of advantages, any shape: 1/2 for 0; 0 and 1 from `bound` on."""
    return (advantages / bound).clamp(-1, 1) / 2 + 0.5


def nft_terms(clips: Predictions, optimal: Tensor, beta: float) -> Tensor:
    """The positive and the negative term of each sample, without the loss scale: float32 [B], with gradient.

    Args:
        optimal: r [B].
        beta: b, above 0.
    """
    positive = beta * clips.trained + (1 - beta) * clips.old
    negative = (1 + beta) * clips.old - beta * clips.trained
    good, bad = _weighted_error(positive, clips.clean), _weighted_error(negative, clips.clean)
    return (optimal * good + (1 - optimal) * bad) / beta


def velocity_regulariser(clips: Predictions) -> Tensor:
    """mean |v - v_base|^2 of each sample, [B], with gradient: in clean clips, their squared difference over t^2."""
    return _mean((clips.trained - clips.base).square()) / clips.time.square()


def nft_loss(
    clips: Predictions,
    advantages: Tensor,
    live: Tensor,
    *,
    beta: float,
    bound: float,
    scale: float,
    regulariser: float,
    count: int,
) -> tuple[Tensor, Metrics]:
    """The loss's share of some samples of a step.

    Args:
        advantages, live: [B]; `live` is 0 for samples that do not count.
        beta: b, strength of the implicit guidance.
        bound: advantage from which on r is 1.
        scale: of the two policy terms.
        regulariser: c.
        count: samples of the whole step.

    Returns:
        Loss and detached metrics; both add up to the step's means.
    """
    policy = _share(scale * nft_terms(clips, optimality(advantages, bound), beta), live, count)
    pull = _share(velocity_regulariser(clips), live, count)
    loss = policy + regulariser * pull
    with torch.no_grad():
        metrics = {
            "loss": loss.detach(),
            "policy_loss": policy.detach(),
            **distances(clips, live, count),
        }
    return loss, metrics


@torch.no_grad()
def distances(clips: Predictions, live: Tensor, count: int) -> Metrics:
    """Where the trained policy stands: mean squared distances of its predictions, for the metrics.

    Returns:
        "base_velocity_distance", what the regulariser is the coefficient of; "old_distance", to the old policy's
        clean clips, and "old_distance_max", the largest of any sample.
    """
    apart = _mean((clips.trained - clips.old).square())
    return {
        "base_velocity_distance": _share(velocity_regulariser(clips), live, count),
        "old_distance": _share(apart, live, count),
        "old_distance_max": (apart * live).max(),
    }


def _weighted_error(mixed: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error of each sample over its mean absolute error, which carries no gradient; [B]."""
    error = mixed - clean
    weight = _mean(error.detach().abs()).clamp_min(LEAST_WEIGHT)
    return _mean(error.square()) / weight


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def _share(values: Tensor, live: Tensor, count: int) -> Tensor:
    return (values * live).sum() / count
