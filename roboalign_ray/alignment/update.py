"""One policy update on a batch of scored rollouts, whatever runs the optimizer.

    groups -> optimizer steps of `minibatch_prompts` groups -> micro-batches -> forward, loss, backward … step

Who trains (a DeepSpeed engine, a plain module with AdamW) stands behind `Trainable`. Ranks divide the sequences by
arithmetic alone; a rank's metrics are partial sums that `merge_metrics` completes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roboalign_ray.alignment.batch import (
    BatchCounts,
    MicroBatch,
    micro_batches,
    token_count,
    training_sequences,
)
from roboalign_ray.alignment.grpo import Metrics, Objective, TokenBatch, merge_metrics
from roboalign_ray.alignment.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.world_model.layout import SequenceLayout

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
    """

    batches: list[MicroBatch]
    references: list[Tensor]
    tokens: int


@dataclass(frozen=True)
class UpdateResult:
    """What an update did.

    Attributes:
        metrics: this rank's share of the means over the update's steps; `merge_metrics` over ranks completes them.
        grad_norm: mean over steps, the same on every rank; NaN where there was no step.
        steps: optimizer steps taken.
        tokens: trained tokens of one pass over the batch, all ranks.
        counts: groups and samples used and left out.
    """

    metrics: dict[str, float]
    grad_norm: float
    steps: int
    tokens: int
    counts: BatchCounts


def policy_update(
    policy: Trainable,
    reference: Predict,
    groups: list[ScoredGroup],
    config: AlignmentConfig,
    objective: Objective,
    *,
    rank: int = 0,
    ranks: int = 1,
) -> UpdateResult:
    """All optimizer steps of one update: `epochs` passes over the batch, `minibatch_prompts` groups a step.

    Steps without a single valid sample are left out on all ranks alike.

    Args:
        reference: the frozen model's `predict`.

    Raises:
        UserError: a rollout that cannot be trained on.
        FloatingPointError: the loss is not finite.
    """
    plan, counts = plan_steps(reference, groups, policy.layout, config, rank=rank, ranks=ranks)
    steps: list[dict[str, float]] = []
    norms: list[float] = []
    for _ in range(config.epochs):
        for step in plan:
            metrics, norm = optimizer_step(policy, step, objective)
            steps.append(metrics)
            norms.append(norm)
    return UpdateResult(
        metrics=_mean_over_steps(steps),
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
) -> tuple[list[OptimizerStep], BatchCounts]:
    """Divide a batch into optimizer steps and micro-batches; the reference is asked once per micro-batch."""
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
        plan.append(OptimizerStep(batches, references, token_count(sequences)))
    return plan, total


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
