"""GRPO on a token world model: segments as training sequences, a frozen reference, corrections for older weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.objectives.kl import EXPONENT_BOUND
from roboalign_ray.alignment.objectives.off_policy import token_loss
from roboalign_ray.alignment.objectives.protocol import (
    LearnerPolicy,
    Metrics,
    Objective,
    OptimizerStep,
    Policy,
    Share,
)
from roboalign_ray.alignment.objectives.token_batch import (
    MicroBatch,
    check_trainable,
    micro_batches,
    token_count,
    training_sequences,
)
from roboalign_ray.alignment.objectives.token_loss import TokenBatch
from roboalign_ray.alignment.objectives.token_policy import TokenPolicy, open_token_policy, predict_batch
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig, JobConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.world_model.token.layout import SequenceLayout

logger = logging.getLogger(__name__)

Predict = Callable[[MicroBatch], tuple[Tensor, Tensor]]


class TokenTrainable(Policy, Protocol):
    """What a token policy adds to `Policy`."""

    def predict(self, item: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the generated tokens, and entropies without gradient, float32 [B, N] both."""
        ...


@dataclass(frozen=True)
class TokenItem:
    """A micro-batch with what does not change during its update.

    Attributes:
        batch: sequences of the same shape.
        reference: log-probabilities [B, N] under the frozen reference.
        stale: bool [B, N], tokens of weights older than those at the beginning of the update; None if there are none,
            or if the loss does not use them.
        proximal: log-probabilities [B, N] under the policy at the beginning of the update, and those of
            `batch.behaviour` where not stale; None if the loss does not use them.
    """

    batch: MicroBatch
    reference: Tensor
    stale: Tensor | None = None
    proximal: Tensor | None = None


class GrpoObjective(Objective[TokenItem]):
    """GRPO with the correction of `off_policy`.

    Attributes:
        layout: layout of the sequences; all attributes exist from `begin` on.
        frozen: the reference model.
        reference: computes its log-probabilities and entropies of a micro-batch.
    """

    unit, trains = "token", "token"
    layout: SequenceLayout
    frozen: TokenPolicy
    reference: Predict

    def __init__(self, config: AlignmentConfig, off_policy: OffPolicyConfig | None = None) -> None:
        super().__init__(config, off_policy)
        self._loss = token_loss(config, self.off_policy)

    def check(self, config: JobConfig) -> None:
        """As `check_trainable`."""
        check_trainable(config.rollout)

    def open_policy(self, folder: Path) -> TokenPolicy:
        """As `open_token_policy`."""
        return open_token_policy(folder)

    def begin(self, policy: LearnerPolicy, folder: Path) -> None:
        """Load the frozen reference in the policy's own precision, so that the first KL is exactly zero."""
        frozen = open_token_policy(folder).to(policy.dtype).to(policy.device).eval()

        def reference(batch: MicroBatch) -> tuple[Tensor, Tensor]:
            policy.passes += 1
            return predict_batch(frozen, batch, policy.device)

        self.layout, self.frozen, self.reference = frozen.layout, frozen, reference

    def prepare(
        self,
        policy: TokenTrainable,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[GroupAdvantages],
        share: Share,
    ) -> OptimizerStep[TokenItem]:
        """Every segment of every valid sample is a sequence. The reference runs once per micro-batch."""
        sequences = training_sequences(groups, advantages, self.layout)
        batches = micro_batches(sequences, self.config.micro_batch_tokens, rank=share.rank, ranks=share.ranks)
        with torch.no_grad():
            items = [TokenItem(batch, self.reference(batch)[0]) for batch in batches]
            # Determined from all sequences, which are the same on every rank: all ranks then make equally many passes.
            if self._loss.needs_stale and any(_stale(s.version, share.version) for s in sequences):
                items = [self._with_stale(policy, item, share.version) for item in items]
        return OptimizerStep(items, token_count(sequences))

    def _with_stale(self, policy: TokenTrainable, item: TokenItem, version: int | None) -> TokenItem:
        """The item with stale tokens marked, and with proximal log-probabilities if the loss needs them."""
        stale = torch.from_numpy(item.batch.older_than(version)).to(policy.device)
        if not self._loss.needs_proximal:
            return replace(item, stale=stale)
        behaviour = torch.from_numpy(item.batch.behaviour).to(policy.device)
        proximal = torch.where(stale, policy.predict(item.batch)[0], behaviour)
        return replace(item, stale=stale, proximal=proximal)

    def loss(self, policy: TokenTrainable, item: TokenItem, size: int) -> tuple[Tensor, Metrics]:
        """Forward pass and token loss."""
        batch = item.batch
        logprobs, entropy = policy.predict(batch)
        tokens = TokenBatch(
            logprobs=logprobs,
            behaviour=torch.from_numpy(batch.behaviour).to(policy.device),
            reference=item.reference,
            advantages=torch.from_numpy(batch.advantages).to(policy.device),
            mask=torch.from_numpy(batch.mask).to(policy.device),
            entropy=entropy,
            stale=item.stale,
            proximal=item.proximal,
        )
        return self._loss(tokens, size)

    def finish(self, policy: TokenTrainable, metrics: Mapping[str, float]) -> None:
        """Warn if the KL was bounded."""
        if metrics.get("kl_bound_fraction"):
            logger.warning(
                "%.2g of the tokens are over %g nats less likely than under the reference; their KL is bounded",
                metrics["kl_bound_fraction"],
                EXPONENT_BOUND,
            )


def _stale(version: int, now: int | None) -> bool:
    """Whether a version is older than the current one; if the current one is None, every version is."""
    return now is None or version < now
