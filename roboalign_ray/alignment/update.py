"""One policy update on a batch of scored rollouts, for any optimizer engine and any objective.

    groups -> optimizer steps of `minibatch_prompts` groups -> micro-batches -> loss, backward … step

`Policy` hides the optimizer engine (DeepSpeed, or a plain module with AdamW); `Objective` hides the content of a
micro-batch. A rank's metrics are partial sums; `merge_metrics` adds them up.
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
    """Result of an update.

    Attributes:
        metrics: this rank's share of the means over the update's steps; `merge_metrics` over ranks completes them.
        grad_norm: mean over steps, the same on every rank; NaN without a step.
        steps: number of optimizer steps.
        size: size of the batch in one pass, over all ranks, in the objective's `unit`.
        unit: unit of `size`, in the singular.
        counts: number of groups and samples used and left out.
        learning_rate: learning rate of every step; the caller sets it.
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
    """Run all optimizer steps of one update: `epochs` passes over the batch, `minibatch_prompts` groups per step.

    All ranks leave out the same steps: those without a valid sample.

    Args:
        version: version of the policy's weights at the beginning; corrections for older weights compare it with the
            samples' versions. None counts every sample as stale.

    Raises:
        UserError: a rollout that cannot be trained on.
        FloatingPointError: the loss is not finite.
    """
    advantages = [configured_advantages(group.scores, config) for group in groups]
    share, plan = Share(rank, ranks, version), []
    # All steps are prepared before the first one, so that they use the policy at the beginning of the update.
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
    """Loss and backward over the micro-batches, then one step. Return this rank's metric sums and the gradient norm.

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
    """Means of the steps' metrics; maxima if a name ends in "_max"."""
    if not steps:
        return {}
    merged = merge_metrics(steps)
    return {name: value if name.endswith("_max") else value / len(steps) for name, value in merged.items()}
