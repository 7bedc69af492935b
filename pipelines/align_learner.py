"""The learner's side of the alignment loop: an update on all ranks, then their weights as a new version."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.align_workers import Call, WorkerPool, Workforce
from pipelines.runtime import RoleFailure, wait
from roboalign_ray.alignment.grpo import merge_metrics
from roboalign_ray.alignment.update import UpdateResult
from roboalign_ray.foundation.failures import Failed


@dataclass(frozen=True)
class Weights:
    """A published version.

    Attributes:
        version: updates it has seen.
        reference: one reference to it; an empty list names the pre-trained weights, which every worker has.
        era: how often the learner was set back to a checkpoint: tells two version 7 apart.
    """

    version: int = 0
    reference: list[Any] = field(default_factory=list)
    era: int = 0


class Learner:
    """All ranks as one.

    Attributes:
        busy: from the beginning of an update until its weights are published.
        seconds: of that, ever.
    """

    def __init__(self, workforce: Workforce, pool: WorkerPool, era: int = 0) -> None:
        self.pool, self.era, self.busy, self.seconds = pool, era, False, 0.0
        self._workforce = workforce

    def update(self, references: Sequence[Any], done: Callable[[dict[str, float], Weights], None]) -> None:
        """Train on these groups, in this order, and publish; `done` is told scalars and weights.

        The workforce's turns raise `RoleLost` where a rank was lost, and `RoleFailure` where one failed.
        """
        self.busy, began = True, time.monotonic()

        def updated(results: list[UpdateResult], _: list[Any]) -> None:
            mark = time.monotonic()
            scalars = update_scalars(results, mark - began)

            def published(versions: list[int], weights: list[Any]) -> None:
                now = time.monotonic()
                self.busy, self.seconds = False, self.seconds + now - began
                scalars["seconds_weights"] = now - mark
                done(scalars, Weights(versions[0], weights, self.era))

            self._on_all("publish", (), published, returns=2)

        self._on_all("update", references, updated)

    def publish(self) -> Weights:
        """The weights that the ranks have, between updates; waits for them.

        Raises:
            RoleFailure: the deadline passed, or a rank was lost.
        """
        pairs = [actor.publish.options(num_returns=2).remote() for actor in self.pool.actors]
        versions = wait([version for _, version in pairs], self.pool.role.deadline_s, "weights")
        return Weights(versions[0], [pairs[0][0]], self.era)

    def _on_all(
        self,
        method: str,
        arguments: Sequence[Any],
        done: Callable[[list[Any], list[Any]], None],
        *,
        returns: int = 1,
    ) -> None:
        """Call all ranks; `done` is told their answers, by rank, and what the first rank leaves where it is."""
        answers: dict[int, Any] = {}
        left: list[Any] = []

        def answered(call: Call, answer: Any) -> None:
            if isinstance(answer, Failed):
                raise RoleFailure(answer.reason)
            rank = call.worker.number
            answers[rank] = answer
            if rank == 0:
                left.extend(call.values)
            if len(answers) == len(self.pool.workers):
                done([answers[rank] for rank in sorted(answers)], left)

        for worker in self.pool.workers:
            self._workforce.send(worker, method, *arguments, then=answered, returns=returns)


def update_scalars(results: list[UpdateResult], seconds: float) -> dict[str, float]:
    """One policy update's scalars from all ranks' results."""
    first = results[0]
    return {
        **merge_metrics([result.metrics for result in results]),
        "grad_norm": first.grad_norm,
        "optimizer_steps": float(first.steps),
        "dropped_groups": float(first.counts.dropped_groups),
        "flat_groups": float(first.counts.flat_groups),
        "seconds_learner": seconds,
        "learner_tokens_per_second": first.tokens / seconds,
    }
