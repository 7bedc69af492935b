"""Per-token estimators of KL(policy || reference) from samples of the policy.

With d = log pi_ref - log pi on a sampled token: k1 = -d is unbiased and may be negative, k2 = d^2/2 is biased
and low in variance, k3 = exp(d) - d - 1 is unbiased and never negative (J. Schulman, "Approximating KL
divergence", 2020). Above d = EXPONENT_BOUND, k3 continues as a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from roboalign_ray.foundation.failures import UserError

# Nats. exp(d) of float32 overflows at 88.7, and one such token dominates all others long before.
EXPONENT_BOUND = 20.0


def kl_k1(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """log pi - log pi_ref, per token, any shape, nats."""
    return logprobs - reference_logprobs


def kl_k2(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """(log pi_ref - log pi)^2 / 2, per token, any shape, nats."""
    return 0.5 * (reference_logprobs - logprobs).square()


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 with d = log pi_ref - log pi, per token, any shape, nats, >= 0.

    Above d = EXPONENT_BOUND, the tangent at the bound is used: value and gradient stay finite, and the gradient still
    points towards the reference.
    """
    difference = reference_logprobs - logprobs
    inside, beyond = difference.clamp(max=EXPONENT_BOUND), torch.relu(difference - EXPONENT_BOUND)
    return torch.expm1(inside) - inside + math.expm1(EXPONENT_BOUND) * beyond


ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def kl_estimate(name: str, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """The estimator by name, per token.

    Raises:
        UserError: there is no such estimator.
    """
    if name not in ESTIMATORS:
        raise UserError(f"no KL estimator '{name}'", remedy=f"one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](logprobs, reference_logprobs)


def kl_bounded(name: str, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Bool, true for tokens where the estimator is bounded; never true for k1 and k2."""
    return (reference_logprobs - logprobs > EXPONENT_BOUND) & (name == "k3")
