"""Softmax-contrastive post-training: a denoising loss on a model's own samples, weighted by a softmax of rewards.

The published form, -log softmax(b R)_i over the K candidates of a prompt, has no gradient: candidates are fixed once
they are sampled, and rewards do not depend on weights. What has one is

    L = sum_i q_i |x(x_t, t) - x_i|^2 / D,    q = softmax(b A)    (x: predicted clean clip; x_i: candidate; D values)

with the gradient sum_i q_i grad |x - x_i|^2 / D: each candidate draws the prediction towards itself, by its weight.
With the denoising loss in the place of -log p, and candidates that the model itself sampled, this is the gradient of
-log mean_i exp(b A_i) by the score-function rule. Advantages, not rewards, stand in the softmax: b then counts
deviations of a group's rewards, whatever their scale [ours]; softmax(b A) = softmax(b R / deviation).

Without spread all weights are equal, and the model would imitate all its samples alike. Such groups get weight 0
instead [ours]: nothing is learned from equal rewards but the regulariser.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.alignment.objectives.diffusion_nft import Predictions, distances, velocity_regulariser
from roboalign_ray.alignment.objectives.protocol import Metrics


def softmax_weights(advantages: np.ndarray, beta: float) -> np.ndarray:
    """Weights float64 [K] of K candidates of one prompt: K softmax(b A), of mean 1; 0 where all advantages are equal.

    Args:
        advantages: [K] of the valid candidates, K at least 1.
        beta: b.
    """
    if not np.ptp(advantages):
        return np.zeros(len(advantages))
    scores = np.exp(beta * (advantages - advantages.max()))
    weights: np.ndarray = len(advantages) * scores / scores.sum()
    return weights


def contrastive_loss(
    clips: Predictions, weights: Tensor, live: Tensor, *, regulariser: float, count: int
) -> tuple[Tensor, Metrics]:
    """The loss's share of some samples of a step.

    Args:
        weights, live: [B]; `live` is 0 for samples that do not count.
        regulariser: coefficient of `velocity_regulariser`.
        count: samples of the whole step.

    Returns:
        Loss and detached metrics; both add up to the step's means.
    """
    error = (clips.trained - clips.clean).square().flatten(1).mean(1)
    policy = (weights * error * live).sum() / count
    loss = policy + regulariser * (velocity_regulariser(clips) * live).sum() / count
    with torch.no_grad():
        metrics = {
            "loss": loss.detach(),
            "policy_loss": policy.detach(),
            **distances(clips, live, count),
        }
    return loss, metrics
