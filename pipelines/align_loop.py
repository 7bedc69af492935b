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
from dataclasses import dataclass

from pipelines.align_stages import Crew, ScoredBatch, Weights, publish, rollout_and_score, train
from roboalign_ray.alignment.prompts import PromptSchedule
from roboalign_ray.config import AlignmentConfig


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
