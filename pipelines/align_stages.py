"""What the alignment loop asks of its actors: rollouts with scores, an update, new weights.

References go in and out; the driver reads numbers. Each stage has its role's deadline.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from actors.rollout import RolloutReport
from pipelines.runtime import RoleFailure, settle, wait
from roboalign_ray.alignment.grpo import merge_metrics
from roboalign_ray.alignment.prompts import PromptName
from roboalign_ray.alignment.scored import GroupRecord, reward_scalars
from roboalign_ray.config import ClusterConfig
from roboalign_ray.foundation.failures import Failed


@dataclass(frozen=True)
class Crew:
    """The actors of a job, by role."""

    rollouts: list[Any]
    scorers: list[Any]
    learners: list[Any]
    cluster: ClusterConfig


@dataclass(frozen=True)
class Weights:
    """A published version: an empty list names the pre-trained weights, else it holds one reference."""

    version: int = 0
    reference: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class ScoredBatch:
    """References to scored groups, one per rollout worker that answered, and the numbers of all of them."""

    references: list[Any]
    records: list[GroupRecord]
    failed: dict[str, Failed]
    scalars: dict[str, float]


def rollout_and_score(
    crew: Crew, names: list[PromptName], seeds: list[tuple[int, ...]], weights: Weights
) -> ScoredBatch:
    """Rollouts of all prompts, scored. Work that a lost worker took with it is counted, not waited for.

    Raises:
        RoleFailure: a deadline passed, or nothing could be scored.
        UserError: bad input found by a worker.
    """
    began = time.perf_counter()
    groups, reports, failed = _rollout(crew, names, seeds, weights)
    rolled = time.perf_counter()
    references, records = _score(crew, groups, names, failed)
    if not records:
        raise RoleFailure(f"no rollout could be scored; first reason: {next(iter(failed.values())).reason}")
    scalars = {
        **reward_scalars(records),
        "failed_groups": float(len(failed)),
        **_rollout_scalars(reports, rolled - began),
        "seconds_scorer": time.perf_counter() - rolled,
    }
    return ScoredBatch(references, records, failed, scalars)


def _rollout(
    crew: Crew, names: list[PromptName], seeds: list[tuple[int, ...]], weights: Weights
) -> tuple[list[tuple[range, Any]], list[RolloutReport], dict[str, Failed]]:
    """(share of the prompts, reference to their groups) per worker that answered, reports, and failures."""
    shares = [share for share in split_evenly(len(names), len(crew.rollouts)) if share]
    calls = [
        actor.rollout.options(num_returns=2).remote(
            [names[i] for i in share], [seeds[i] for i in share], weights.version, weights.reference
        )
        for actor, share in zip(crew.rollouts, shares, strict=False)
    ]
    answers = settle([report for _, report in calls], crew.cluster.rollout.deadline_s, "rollouts")
    groups, reports = [], []
    failed: dict[str, Failed] = {}
    for share, (reference, _), answer in zip(shares, calls, answers, strict=True):
        if isinstance(answer, Failed):
            failed |= {names[i].prompt_id: answer for i in share}
        else:
            groups.append((share, reference))
            reports.append(answer)
            failed |= answer.failed
    return groups, reports, failed


def _score(
    crew: Crew, groups: list[tuple[range, Any]], names: list[PromptName], failed: dict[str, Failed]
) -> tuple[list[Any], list[GroupRecord]]:
    """References to scored groups, and their numbers; what was lost joins `failed`."""
    calls = [
        crew.scorers[number % len(crew.scorers)].score.options(num_returns=2).remote(reference)
        for number, (_, reference) in enumerate(groups)
    ]
    answers = settle([numbers for _, numbers in calls], crew.cluster.scorer.deadline_s, "scores")
    references, records = [], []
    for (share, _), (scored, _), answer in zip(groups, calls, answers, strict=True):
        if isinstance(answer, Failed):
            failed.update({names[i].prompt_id: answer for i in share})
        else:
            references.append(scored)
            records += answer
    return references, records


def train(crew: Crew, batch: ScoredBatch) -> dict[str, float]:
    """One policy update on all ranks; its scalars."""
    began = time.perf_counter()
    results = wait(
        [learner.update.remote(*batch.references) for learner in crew.learners],
        crew.cluster.learner.deadline_s,
        "policy update",
    )
    seconds, first = time.perf_counter() - began, results[0]
    return {
        **merge_metrics([result.metrics for result in results]),
        "grad_norm": first.grad_norm,
        "optimizer_steps": first.steps,
        "dropped_groups": first.counts.dropped_groups,
        "flat_groups": first.counts.flat_groups,
        "seconds_learner": seconds,
        "learner_tokens_per_second": first.tokens / seconds,
    }


def publish(crew: Crew) -> Weights:
    """The learner's weights as a reference; all ranks take part, the first one's answer counts."""
    pairs = [learner.publish.options(num_returns=2).remote() for learner in crew.learners]
    versions = wait([version for version, _ in pairs], crew.cluster.learner.deadline_s, "weights")
    return Weights(versions[0], [pairs[0][1]])


def split_evenly(items: int, workers: int) -> list[range]:
    """Contiguous shares, so that the order of groups does not depend on how many workers there are."""
    edges = [items * worker // workers for worker in range(workers + 1)]
    return [range(edges[w], edges[w + 1]) for w in range(workers)]


def _rollout_scalars(reports: list[RolloutReport], seconds: float) -> dict[str, float]:
    tokens = sum(report.tokens for report in reports)
    return {
        "seconds_rollout": seconds,
        "rollout_tokens": float(tokens),
        "rollout_tokens_per_second": tokens / seconds,
        "peak_sequence": float(max((report.peak_sequence for report in reports), default=0)),
        "cache_bytes": float(max((report.cache_bytes for report in reports), default=0)),
    }
