"""The synchronous alignment loop, top to bottom.

    prompts ─► rollout actors ─► scorer actors ─► learner ranks ─► weights, version v+1 ─┐
       ▲          tokens           scores            GRPO                                │
       └─────────────────────────────────────────────────────────────────────────────────┘

The driver holds references and numbers: tokens go from actor to actor, pixels never leave one. Every segment records
the version that made it and weights travel with each call, so nothing here but `updates` itself assumes that the
roles take turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.runtime import RoleFailure, settle, wait
from roboalign_ray.alignment.grpo import merge_metrics
from roboalign_ray.alignment.prompts import PromptName, PromptSchedule
from roboalign_ray.alignment.scored import GroupRecord, reward_scalars
from roboalign_ray.config import AlignmentConfig, ClusterConfig
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


@dataclass(frozen=True)
class Update:
    """What one update did: `weights` are those it ended with."""

    index: int
    batch: ScoredBatch
    weights: Weights
    scalars: dict[str, float]


def updates(
    crew: Crew, schedule: PromptSchedule, config: AlignmentConfig, weights: Weights
) -> Iterator[Update]:
    """Updates `weights.version` to `config.updates - 1`, one at a time.

    Raises:
        RoleFailure: a deadline passed, a learner was lost, or no rollout of an update could be scored.
        UserError: bad input found by a worker.
    """
    for index in range(weights.version, config.updates):
        began = time.perf_counter()
        names = schedule.train(index, config.prompts_per_update)
        seeds = schedule.seeds(index, len(names), config.group_size)
        batch = rollout_and_score(crew, names, seeds, weights)
        scalars = batch.scalars | train(crew, batch)
        mark = time.perf_counter()
        weights = publish(crew)
        scalars["seconds_weights"] = time.perf_counter() - mark
        scalars["seconds"] = time.perf_counter() - began
        yield Update(index, batch, weights, scalars)


def rollout_and_score(
    crew: Crew, names: list[PromptName], seeds: list[tuple[int, ...]], weights: Weights
) -> ScoredBatch:
    """Rollouts of all prompts, scored. Work that a lost worker took with it is counted, not waited for."""
    began = time.perf_counter()
    shares = [part for part in _shares(len(names), len(crew.rollouts)) if part]
    pairs = [
        actor.rollout.options(num_returns=2).remote(
            [names[i] for i in part], [seeds[i] for i in part], weights.version, weights.reference
        )
        for actor, part in zip(crew.rollouts, shares, strict=False)
    ]
    reports = settle([report for _, report in pairs], crew.cluster.rollout.deadline_s, "rollouts")
    rolled = time.perf_counter()

    failed: dict[str, Failed] = {}
    triples = []
    for number, (part, (groups, _), report) in enumerate(zip(shares, pairs, reports, strict=True)):
        if isinstance(report, Failed):
            failed |= {names[i].prompt_id: report for i in part}
            continue
        failed |= report.failed
        scorer = crew.scorers[number % len(crew.scorers)]
        triples.append((part, scorer.score.options(num_returns=2).remote(groups)))
    outcomes = settle([numbers for _, (_, numbers) in triples], crew.cluster.scorer.deadline_s, "scores")
    references, records = [], []
    for (part, (scored, _)), outcome in zip(triples, outcomes, strict=True):
        if isinstance(outcome, Failed):
            failed |= {names[i].prompt_id: outcome for i in part}
        else:
            references.append(scored)
            records += outcome
    if not references:
        raise RoleFailure(f"no rollout could be scored; first reason: {next(iter(failed.values())).reason}")
    alive = [report for report in reports if not isinstance(report, Failed)]
    return ScoredBatch(references, records, failed, _batch_scalars(records, failed, alive, began, rolled))


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


def _shares(items: int, workers: int) -> list[range]:
    """Contiguous shares, so that the order of groups does not depend on how many workers there are."""
    edges = [items * worker // workers for worker in range(workers + 1)]
    return [range(edges[w], edges[w + 1]) for w in range(workers)]


def _batch_scalars(
    records: list[GroupRecord], failed: dict[str, Failed], reports: list[Any], began: float, rolled: float
) -> dict[str, float]:
    seconds = rolled - began
    tokens = sum(report.tokens for report in reports)
    return {
        **reward_scalars(records),
        "failed_groups": len(failed),
        "seconds_rollout": seconds,
        "seconds_scorer": time.perf_counter() - rolled,
        "rollout_tokens": tokens,
        "rollout_tokens_per_second": tokens / seconds,
        "peak_sequence": max((report.peak_sequence for report in reports), default=0),
        "cache_bytes": max((report.cache_bytes for report in reports), default=0),
    }
