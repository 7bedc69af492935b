"""Corrections for segments that were generated with older weights.

There are three policies: the behaviour policy b that sampled a token, the proximal policy p at the beginning of the
update, and the trained policy pi. In synchronous training b = p, and the clipped ratio pi/b keeps the step small. If b
is older, clipping pi/b would pull the policy back towards b; so one of

    decoupled   w min(u A, clip(u, 1-e, 1+e) A),   u = pi/p,  w = min(p/b, C)          (arXiv 2505.24298)
    truncated   min(pi/b, C) A log pi,             the weight without gradient         (arXiv 2506.13585)

replaces the clipped surrogate for these tokens, the first one including the dual clip. Weights are per token and
truncated at C >= 1: without truncation, their variance grows without bound with staleness. For a segment of the weights
at the beginning of the update, b = p is set exactly, so it gets the plain objective in spite of rounding differences
between engine and learner. Every segment of a rollout has its own version, so a rollout may be partly stale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from roboalign_ray.alignment.objectives.protocol import Metrics
from roboalign_ray.alignment.objectives.token_loss import (
    LOG_RATIO_BOUND,
    GrpoLoss,
    Surrogate,
    TokenBatch,
    TokenLoss,
    clipped_surrogate,
    grpo_loss,
)
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig

# [B, N] each: log-probabilities for the ratios, weights, where these were cut; and another surrogate, if there is one.
_Correction = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Surrogate | None]


def token_loss(config: AlignmentConfig, off_policy: OffPolicyConfig) -> TokenLoss:
    """The configured loss; plain GRPO by default."""
    if off_policy.correction == "decoupled":
        return DecoupledLoss(config, off_policy)
    if off_policy.correction == "truncated":
        return TruncatedLoss(config, off_policy)
    return GrpoLoss(config)


class _CorrectedLoss(ABC):
    """Plain GRPO if nothing is stale, else GRPO with a correction."""

    needs_stale = True
    needs_proximal: bool

    def __init__(self, config: AlignmentConfig, off_policy: OffPolicyConfig) -> None:
        self.config, self.off_policy = config, off_policy

    def __call__(self, batch: TokenBatch, token_count: float) -> tuple[torch.Tensor, Metrics]:
        stale = zero = torch.zeros_like(batch.mask)
        correction: _Correction = (batch.behaviour, zero + 1, zero, None)
        if batch.stale is not None:
            stale, correction = batch.stale, self._correction(batch, batch.stale)
        old, weights, cut, surrogate_of = correction
        loss, metrics = grpo_loss(
            batch.logprobs,
            old,
            batch.reference,
            batch.advantages,
            batch.mask,
            self.config,
            token_count=token_count,
            entropy=batch.entropy,
            surrogate_of=surrogate_of,
        )
        if self.needs_proximal:
            metrics["proximal_kl"] = metrics["behaviour_kl"]
            metrics["behaviour_kl"] = _behaviour_kl(batch, token_count)
        shares = {"importance_mean": weights, "importance_cut": cut, "stale_fraction": stale}
        for name, values in shares.items():
            metrics[name] = _share(values.to(zero.dtype), batch.mask, token_count)
        return loss, metrics

    @abstractmethod
    def _correction(self, batch: TokenBatch, stale: torch.Tensor) -> _Correction: ...

    def _clipped(self, ratio: torch.Tensor, advantages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return clipped_surrogate(ratio, advantages, self.config.clip, self.config.dual_clip)


class DecoupledLoss(_CorrectedLoss):
    """Clips against the proximal policy, and weights by the ratio of the proximal to the behaviour policy."""

    needs_proximal = True

    def _correction(self, batch: TokenBatch, stale: torch.Tensor) -> _Correction:
        assert batch.proximal is not None
        weights, cut = importance_weights(
            batch.proximal, batch.behaviour, batch.mask, self.off_policy.truncation
        )

        def surrogate_of(ratio: torch.Tensor, advantages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            plain, clipped = self._clipped(ratio, advantages)
            return weights * plain, clipped

        return batch.proximal, weights, cut, surrogate_of


class TruncatedLoss(_CorrectedLoss):
    """REINFORCE with truncated importance weights on stale tokens, plain GRPO on the others."""

    needs_proximal = False

    def _correction(self, batch: TokenBatch, stale: torch.Tensor) -> _Correction:
        weights, cut = importance_weights(
            batch.logprobs.detach(), batch.behaviour, batch.mask * stale, self.off_policy.truncation
        )

        def surrogate_of(ratio: torch.Tensor, advantages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            plain, clipped = self._clipped(ratio, advantages)
            # ratio / ratio.detach() is 1, with the gradient of log pi.
            weighted = weights * advantages * (ratio / ratio.detach())
            return torch.where(stale, weighted, plain), torch.where(stale, cut, clipped)

        return batch.behaviour, weights, cut, surrogate_of


def importance_weights(
    target: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor, truncation: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """min(target / behaviour, C) per token, and bool where C cut it; 1 where the mask is 0. No gradient.

    Args:
        target, behaviour: log-probabilities [B, N] of the sampled tokens, nats.
        mask: [B, N].
        truncation: C, at least 1.
    """
    with torch.no_grad():
        difference = torch.where(mask.bool(), target - behaviour, torch.zeros_like(behaviour))
        weights = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
        return weights.clamp(max=truncation), weights > truncation


def _behaviour_kl(batch: TokenBatch, token_count: float) -> torch.Tensor:
    with torch.no_grad():
        log_ratio = (batch.logprobs - batch.behaviour).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        return _share(torch.expm1(log_ratio) - log_ratio, batch.mask, token_count)


def _share(values: torch.Tensor, mask: torch.Tensor, token_count: float) -> torch.Tensor:
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum() / max(token_count, 1.0)
