"""The GRPO loss on tokens: clipped ratio, dual clip, KL to a frozen reference, mean over all tokens.

    L = sum_t [ -surrogate_t + beta * KL_t ] / N,   surrogate = min(rho A, clip(rho, 1-e, 1+e) A),
    and max(surrogate, c A) where A < 0 (dual clip, arXiv 1912.09729); rho = pi / pi_behaviour.

N is the number of valid tokens of the whole optimizer step, so the gradients of its micro-batches add up to the
gradient of the whole step, for any division into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from roboalign_ray.alignment.objectives.kl import kl_bounded, kl_estimate
from roboalign_ray.alignment.objectives.protocol import Metrics
from roboalign_ray.config import AlignmentConfig

LOG_RATIO_BOUND = (
    20.0  # exp() of larger values overflows to inf, whose zero gradient in a clipped branch becomes NaN
)

# ratio and advantages, broadcasting to [B, N] -> surrogate [B, N], and bool [B, N] where a bound cut it
Surrogate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class TokenBatch:
    """Inputs of a loss on tokens. All float32 [B, N] except `advantages`, which broadcasts to that shape.

    Attributes:
        logprobs: log-probabilities of the sampled tokens under the trained policy, with gradient.
        behaviour: those under the policy that sampled them.
        reference: those under the frozen pre-trained model.
        advantages: [B, 1] or [B, N].
        mask: 1 for tokens that count, else 0.
        entropy: entropy of the policy's distribution, nats, if it was computed.
        stale: bool, tokens of weights older than those at the beginning of the update; None if there are none.
        proximal: those under the policy at the beginning of the update, equal to `behaviour` where not stale; or None.
    """

    logprobs: torch.Tensor
    behaviour: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    entropy: torch.Tensor | None = None
    stale: torch.Tensor | None = None
    proximal: torch.Tensor | None = None


class TokenLoss(Protocol):
    """A loss on micro-batches of tokens. Losses and metrics of a step's micro-batches add up to the step's.

    Attributes:
        needs_stale, needs_proximal: whether it uses these fields of `TokenBatch`.
    """

    needs_stale: bool
    needs_proximal: bool

    def __call__(self, batch: TokenBatch, token_count: float) -> tuple[torch.Tensor, Metrics]:
        """Scalar loss and detached metrics; `token_count` is the number of valid tokens of the whole step."""
        ...


class GrpoLoss:
    """`grpo_loss` with the `TokenLoss` protocol."""

    needs_stale = needs_proximal = False

    def __init__(self, config: AlignmentConfig) -> None:
        self.config = config

    def __call__(self, batch: TokenBatch, token_count: float) -> tuple[torch.Tensor, Metrics]:
        return grpo_loss(
            batch.logprobs,
            batch.behaviour,
            batch.reference,
            batch.advantages,
            batch.mask,
            self.config,
            token_count=token_count,
            entropy=batch.entropy,
        )


def grpo_loss(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    config: AlignmentConfig,
    *,
    token_count: float | None = None,
    entropy: torch.Tensor | None = None,
    surrogate_of: Surrogate | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """GRPO loss of one (micro-)batch.

    Args:
        logprobs, behaviour_logprobs, reference_logprobs: [B, N], of the sampled tokens, nats.
        advantages: [B, 1] or [B, N].
        mask: [B, N], 1 for tokens that count.
        config: clip, dual_clip, kl_coefficient, kl_estimator.
        token_count: number of valid tokens of the whole optimizer step; None takes this batch's own.
        entropy: [B, N], only for the metrics.
        surrogate_of: replaces `clipped_surrogate`.

    Returns:
        Scalar loss, and detached metrics. Every metric but "ratio_max" is a sum over valid tokens divided by
        `token_count`: added over a step's micro-batches they are its means. "ratio_max" combines by maximum.
    """
    valid = mask.bool()
    count = float(mask.sum()) if token_count is None else float(token_count)
    # Masked here and in the mean: the gradient of NaN times zero would be NaN.
    logprobs, behaviour_logprobs, reference_logprobs = (
        torch.where(valid, values, torch.zeros_like(values))
        for values in (logprobs, behaviour_logprobs, reference_logprobs)
    )
    log_ratio = (logprobs - behaviour_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = log_ratio.exp()
    if surrogate_of is None:
        surrogate, clipped = clipped_surrogate(ratio, advantages, config.clip, config.dual_clip)
    else:
        surrogate, clipped = surrogate_of(ratio, advantages)
    kl = kl_estimate(config.kl_estimator, logprobs, reference_logprobs)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, values, torch.zeros_like(values)).sum() / max(count, 1.0)

    policy_loss = mean(-surrogate)
    reference_kl = mean(kl)
    loss = policy_loss + config.kl_coefficient * reference_kl
    with torch.no_grad():
        metrics = {
            "loss": loss.detach(),
            "policy_loss": policy_loss.detach(),
            "reference_kl": reference_kl.detach(),
            "behaviour_kl": mean(torch.expm1(log_ratio) - log_ratio),
            "kl_bound_fraction": mean(
                kl_bounded(config.kl_estimator, logprobs, reference_logprobs).to(ratio.dtype)
            ),
            "clip_fraction": mean(clipped.to(ratio.dtype)),
            "ratio_mean": mean(ratio),
            "ratio_max": torch.where(valid, ratio, torch.zeros_like(ratio)).max(),
        }
        if entropy is not None:
            metrics["entropy"] = mean(entropy)
    return loss, metrics


def clipped_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, clip: float, dual_clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate, and bool where a bound cut it.

    Args:
        ratio: [B, N]. advantages: broadcasts to it.
        clip: half-width of the trusted interval around ratio 1.
        dual_clip: bound c > 1 on the loss where the advantage is negative; 0 leaves it out.

    Returns:
        Surrogate [B, N] and bool [B, N], true where clipping took effect (these tokens have no gradient).
    """
    plain = ratio * advantages
    surrogate = torch.minimum(plain, ratio.clamp(1 - clip, 1 + clip) * advantages)
    if dual_clip > 0:
        bounded = torch.maximum(surrogate, dual_clip * advantages)
        surrogate = torch.where(advantages < 0, bounded, surrogate)
    return surrogate, surrogate.detach() != plain.detach()
