"""One policy update on a batch of scored rollouts, whatever runs the optimizer and whatever the objective is.

    groups -> optimizer steps of `minibatch_prompts` groups -> micro-batches -> loss, backward … step

Who trains (a DeepSpeed engine, a plain module with AdamW) stands behind `Policy`; what a micro-batch is, behind
`Objective`. A rank's metrics are partial sums that `merge_metrics` completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roboalign_ray.alignment.advantages import BatchCounts, batch_counts, configured_advantages
from roboalign_ray.alignment.objectives.protocol import (
    Metrics,
    Objective,
    OptimizerStep,
    Policy,
    Share,
    merge_metrics,
)
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig


@dataclass(frozen=True)
class UpdateResult:
    """What an update did.

    Attributes:
        metrics: this rank's share of the means over the update's steps; `merge_metrics` over ranks completes them.
        grad_norm: mean over steps, the same on every rank; NaN where there was no step.
        steps: optimizer steps taken.
        size: what one pass over the batch trained on, all ranks, in the objective's `unit`.
        unit: of `size`, in the singular.
        counts: groups and samples used and left out.
        learning_rate: of every step; the caller sets it.
    """

    metrics: dict[str, float]
    grad_norm: float
    steps: int
    size: int
    unit: str
    counts: BatchCounts
    learning_rate: float = 0.0


def policy_update(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    config: AlignmentConfig,
    objective: Objective[Any],
    *,
    rank: int = 0,
    ranks: int = 1,
    version: int | None = None,
) -> UpdateResult:
    """All optimizer steps of one update: `epochs` passes over the batch, `minibatch_prompts` groups a step.

    Steps without a single valid sample are left out on all ranks alike.

    Args:
        version: of the policy's weights at the beginning, which corrections for older weights tell stale samples by;
            None takes every sample for stale.

    Raises:
        UserError: a rollout that cannot be trained on.
        FloatingPointError: the loss is not finite.
    """
    advantages = [configured_advantages(group.scores, config) for group in groups]
    share, plan = Share(rank, ranks, version), []
    # All are prepared before the first step: what they ask of the policy, they ask of the one at the beginning.
    for first in range(0, len(groups), config.minibatch_prompts):
        chosen = slice(first, first + config.minibatch_prompts)
        if any(values.valid.any() for values in advantages[chosen]):
            plan.append(objective.prepare(policy, groups[chosen], advantages[chosen], share))
    taken = [optimizer_step(policy, step, objective) for _ in range(config.epochs) for step in plan]
    metrics = _mean_over_steps([metrics for metrics, _ in taken])
    objective.finish(policy, metrics)
    return UpdateResult(
        metrics=metrics,
        grad_norm=sum(norm for _, norm in taken) / len(taken) if taken else float("nan"),
        steps=len(taken),
        size=sum(step.size for step in plan),
        unit=objective.unit,
        counts=batch_counts(advantages),
    )


def optimizer_step(
    policy: Policy, step: OptimizerStep[Any], objective: Objective[Any]
) -> tuple[dict[str, float], float]:
    """Loss and backward over the micro-batches, then one step. This rank's metric sums and the gradient norm.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    parts: list[Metrics] = []
    for index, item in enumerate(step.items):
        loss, metrics = objective.loss(policy, item, step.size)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {float(loss.detach())} in micro-batch {index}")
        policy.backward(loss, last=index == len(step.items) - 1)
        parts.append(metrics)
    return merge_metrics(parts), policy.step()


def _mean_over_steps(steps: list[dict[str, float]]) -> dict[str, float]:
    """Means of the steps' metrics, maxima where a name ends in "_max"."""
    if not steps:
        return {}
    merged = merge_metrics(steps)
    return {name: value if name.endswith("_max") else value / len(steps) for name, value in merged.items()}
