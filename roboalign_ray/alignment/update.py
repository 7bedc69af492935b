"""One policy update on a batch of scored rollouts, whatever runs the optimizer.

    groups -> optimizer steps of `minibatch_prompts` groups -> micro-batches -> forward, loss, backward … step

Who trains (a DeepSpeed engine, a plain module with AdamW) stands behind `Trainable`. Ranks divide the sequences by
arithmetic alone; a rank's metrics are partial sums that `merge_metrics` completes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from roboalign_ray.alignment.objectives.grpo import Metrics, Objective, TokenBatch, merge_metrics
from roboalign_ray.alignment.objectives.kl import EXPONENT_BOUND
from roboalign_ray.alignment.objectives.off_policy import EVERY_VERSION, OffPolicyObjective, stale_masks
from roboalign_ray.alignment.objectives.token_batch import (
    BatchCounts,
    MicroBatch,
    micro_batches,
    token_count,
    training_sequences,
)
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.world_model.token.layout import SequenceLayout

logger = logging.getLogger(__name__)

Predict = Callable[[MicroBatch], tuple[Tensor, Tensor]]


class Trainable(Protocol):
    """A policy and its optimizer."""

    layout: SequenceLayout
    device: torch.device

    def predict(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the generated tokens, and entropies without gradient, float32 [B, N] both."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this micro-batch's share of the step's loss; `last` is true for the step's last."""
        ...

    def step(self) -> float:
        """Clip, update, zero the gradients; the gradient's norm before clipping."""
        ...


@dataclass(frozen=True)
class OptimizerStep:
    """This rank's micro-batches of one optimizer step, with reference log-probabilities [B, N] of each.

    Attributes:
        tokens: valid tokens of the step over all ranks.
        stale: bool [B, N] of each, tokens of older weights; None where the step has none, or they are not told apart.
        proximals: log-probabilities [B, N] at the update's start, where `stale` is known.
    """

    batches: list[MicroBatch]
    references: list[Tensor]
    tokens: int
    stale: list[Tensor] | None = None
    proximals: list[Tensor] | None = None


@dataclass(frozen=True)
class UpdateResult:
    """What an update did.

    Attributes:
        metrics: this rank's share of the means over the update's steps; `merge_metrics` over ranks completes them.
        grad_norm: mean over steps, the same on every rank; NaN where there was no step.
        steps: optimizer steps taken.
        tokens: trained tokens of one pass over the batch, all ranks.
        counts: groups and samples used and left out.
        learning_rate: of every step; the caller sets it.
    """

    metrics: dict[str, float]
    grad_norm: float
    steps: int
    tokens: int
    counts: BatchCounts
    learning_rate: float = 0.0


def policy_update(
    policy: Trainable,
    reference: Predict,
    groups: list[ScoredGroup],
    config: AlignmentConfig,
    objective: Objective,
    *,
    rank: int = 0,
    ranks: int = 1,
    version: int | None = None,
) -> UpdateResult:
    """All optimizer steps of one update: `epochs` passes over the batch, `minibatch_prompts` groups a step.

    Steps without a single valid sample are left out on all ranks alike.

    Args:
        reference: the frozen model's `predict`.
        version: of the policy's weights at the beginning, which objectives with off-policy correction tell stale
            segments by; None takes every segment for stale.

    Raises:
        UserError: a rollout that cannot be trained on.
        FloatingPointError: the loss is not finite.
    """
    before: int | None = None
    if isinstance(objective, OffPolicyObjective):
        before = EVERY_VERSION if version is None else version
    plan, counts = plan_steps(
        reference, groups, policy.layout, config, rank=rank, ranks=ranks, stale_before=before
    )
    if isinstance(objective, OffPolicyObjective) and objective.needs_proximal:
        # All before the first step: the proximal policy is that of the update's beginning.
        plan = [_with_proximal(policy, step) for step in plan]
    steps: list[dict[str, float]] = []
    norms: list[float] = []
    for _ in range(config.epochs):
        for step in plan:
            metrics, norm = optimizer_step(policy, step, objective)
            steps.append(metrics)
            norms.append(norm)
    metrics = _mean_over_steps(steps)
    if metrics.get("kl_bound_fraction"):
        logger.warning(
            "%.2g of the tokens are over %g nats less likely than under the reference; their KL is bounded",
            metrics["kl_bound_fraction"],
            EXPONENT_BOUND,
        )
    return UpdateResult(
        metrics=metrics,
        grad_norm=sum(norms) / len(norms) if norms else float("nan"),
        steps=len(steps),
        tokens=sum(step.tokens for step in plan),
        counts=counts,
    )


def plan_steps(
    reference: Predict,
    groups: list[ScoredGroup],
    layout: SequenceLayout,
    config: AlignmentConfig,
    *,
    rank: int = 0,
    ranks: int = 1,
    stale_before: int | None = None,
) -> tuple[list[OptimizerStep], BatchCounts]:
    """Divide a batch into optimizer steps and micro-batches; the reference is asked once per micro-batch.

    Args:
        stale_before: segments of older versions than this one are marked; None marks none.
    """
    plan: list[OptimizerStep] = []
    total = BatchCounts(0, 0, 0, 0, 0)
    for first in range(0, len(groups), config.minibatch_prompts):
        sequences, counts = training_sequences(
            groups[first : first + config.minibatch_prompts], layout, config
        )
        total = total + counts
        if not sequences:
            continue
        batches = micro_batches(sequences, config.micro_batch_tokens, rank=rank, ranks=ranks)
        with torch.no_grad():
            references = [reference(batch)[0] for batch in batches]
        stale = None
        if stale_before is not None:
            stale = stale_masks(sequences, stale_before, config.micro_batch_tokens, rank=rank, ranks=ranks)
        plan.append(OptimizerStep(batches, references, token_count(sequences), stale))
    return plan, total


def _with_proximal(policy: Trainable, step: OptimizerStep) -> OptimizerStep:
    """The step with `proximals`; as it is where nothing in it is stale, on all ranks alike."""
    if step.stale is None:
        return step
    proximals = []
    with torch.no_grad():
        for batch, stale in zip(step.batches, step.stale, strict=True):
            behaviour = torch.from_numpy(batch.behaviour).to(policy.device)
            mask = stale.to(policy.device)
            proximals.append(torch.where(mask, policy.predict(batch)[0], behaviour))
    return replace(step, proximals=proximals)


def optimizer_step(
    policy: Trainable, step: OptimizerStep, objective: Objective
) -> tuple[dict[str, float], float]:
    """Forward and backward over the micro-batches, then one step. This rank's metric sums and the gradient norm.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    parts: list[Metrics] = []
    for index, (batch, reference) in enumerate(zip(step.batches, step.references, strict=True)):
        logprobs, entropy = policy.predict(batch)
        tokens = TokenBatch(
            logprobs=logprobs,
            behaviour=torch.from_numpy(batch.behaviour).to(policy.device),
            reference=reference,
            advantages=torch.from_numpy(batch.advantages).to(policy.device),
            mask=torch.from_numpy(batch.mask).to(policy.device),
            entropy=entropy,
            stale=None if step.stale is None else step.stale[index].to(policy.device),
            proximal=None if step.proximals is None else step.proximals[index],
        )
        loss, metrics = objective(tokens, step.tokens)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {float(loss.detach())} in micro-batch {index}")
        policy.backward(loss, last=index == len(step.batches) - 1)
        parts.append(metrics)
    return merge_metrics(parts), policy.step()


def _mean_over_steps(steps: list[dict[str, float]]) -> dict[str, float]:
    """Means of the steps' metrics, maximum of "ratio_max"."""
    if not steps:
        return {}
    return {
        name: max(s[name] for s in steps) if name == "ratio_max" else sum(s[name] for s in steps) / len(steps)
        for name in steps[0]
    }
