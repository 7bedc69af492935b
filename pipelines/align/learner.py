"""The learner's part of the alignment loop: runs an update on all ranks, then publishes the new weight version."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from roboalign_ray.alignment.objectives.protocol import merge_metrics
from roboalign_ray.alignment.update import UpdateResult
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.weight_sync.manifest import Manifest, Parcel
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.cluster.worker_pool import Call, RoleLost, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce

_TURN_S = 0.5  # longest wait between checks of heartbeats and deadlines


@dataclass(frozen=True)
class Weights:
    """A published weight version.

    Attributes:
        version: number of updates that made it.
        reference: one reference to its `Parcel`, which names its buckets; an empty list stands for the pre-trained
            weights, which every worker has.
        incarnation: of the learner, by its restart count; it distinguishes two versions of the same number.
    """

    version: int = 0
    reference: list[Any] = field(default_factory=list)
    incarnation: int = 0


@dataclass(frozen=True)
class Left:
    """The values that a call leaves in the object store, and its answer."""

    values: list[Any]
    answer: Any


class Learner:
    """All ranks of the learner.

    Attributes:
        busy: whether an update runs or its weights are being published.
        seconds: total duration of updates.
    """

    def __init__(self, workforce: Workforce, pool: WorkerPool, incarnation: int = 0) -> None:
        self.pool, self.incarnation, self.busy, self.seconds = pool, incarnation, False, 0.0
        self._workforce = workforce

    def update(
        self,
        references: Sequence[Any],
        done: Callable[[dict[str, float], Weights], None],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Train on these groups, in this order, and publish. `done` is called with scalars and weights.

        The workforce's turns raise `RoleLost` if a rank was lost, and `RoleFailure` if a rank raised an error.

        Args:
            about: details for observers, see `Call`.
        """
        self.busy, began = True, time.monotonic()

        def updated(results: list[UpdateResult]) -> None:
            mark = time.monotonic()
            scalars = update_scalars(results, mark - began)

            def published(weights: Weights) -> None:
                now = time.monotonic()
                self.busy, self.seconds = False, self.seconds + now - began
                scalars["seconds_weights"] = now - mark
                done(scalars, weights)

            self._on_all("publish", (), lambda answers: self._take(answers[0], published))

        self._on_all("update", references, updated, about)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """All ranks' answers to a call between updates, by rank. Other roles' answers are handled meanwhile.

        Raises:
            RoleLost: a rank was lost, hung or late.
            RoleFailure: a rank raised an error; or as the workforce's turns.
        """
        answers: list[list[Any]] = []
        self._on_all(method, arguments, answers.append, progresses=False)
        self._turn_until(answers)
        return answers[0]

    def ask_first(self, method: str, *arguments: Any, returns: int = 1) -> Left:
        """Call the first rank between updates. Return its answer, and its other values as references. Raises as `ask`.

        Args:
            returns: number of values of the method; the last one is the answer.
        """
        left: list[Left] = []

        def answered(call: Call, answer: Any) -> None:
            _check(answer)
            left.append(Left(call.values, answer))

        first = self.pool.workers[0]
        self._workforce.send(first, method, *arguments, then=answered, returns=returns, progresses=False)
        self._turn_until(left)
        return left[0]

    def publish(self) -> Weights:
        """Publish the ranks' weights between updates, and wait for it. Raises as `ask`."""
        version, manifest = self.ask("publish")[0]
        buckets = self.ask_first("take_buckets", returns=len(manifest.buckets) + 1).values
        return self._post(version, manifest, buckets)

    def _turn_until(self, answers: list[Any]) -> None:
        while not answers:
            self._workforce.turn(_TURN_S)

    def _take(self, packed: tuple[int, Manifest], done: Callable[[Weights], None]) -> None:
        """Call the first rank for its buckets; they stay in the object store."""
        version, manifest = packed

        def taken(call: Call, answer: Any) -> None:
            _check(answer)
            done(self._post(version, manifest, call.values))

        rank = self.pool.workers[0]
        self._workforce.send(rank, "take_buckets", then=taken, returns=len(manifest.buckets) + 1)

    def _post(self, version: int, manifest: Manifest, buckets: list[Any]) -> Weights:
        return Weights(version, [ray.put(Parcel(manifest, tuple(buckets)))], self.incarnation)

    def _on_all(
        self,
        method: str,
        arguments: Sequence[Any],
        done: Callable[[list[Any]], None],
        about: Mapping[str, Any] | None = None,
        *,
        progresses: bool = True,
    ) -> None:
        """Call all ranks. `done` is called with their answers, by rank."""
        answers: dict[int, Any] = {}

        def answered(call: Call, answer: Any) -> None:
            _check(answer)
            answers[call.worker.number] = answer
            if len(answers) == len(self.pool.workers):
                done([answers[rank] for rank in sorted(answers)])

        for worker in self.pool.workers:
            self._workforce.send(
                worker, method, *arguments, then=answered, about=about, progresses=progresses
            )


def _check(answer: Any) -> None:
    """A `RoleFailure` for an error inside the learner, which would repeat; a `RoleLost` for a loss, which would not."""
    if isinstance(answer, Failed):
        raise (RoleLost if answer.kind in ("ray_error", "worker_lost") else RoleFailure)(answer.reason)


def update_scalars(results: list[UpdateResult], seconds: float) -> dict[str, float]:
    """One policy update's scalars, from all ranks' results."""
    first = results[0]
    return {
        **merge_metrics([result.metrics for result in results]),
        "grad_norm": first.grad_norm,
        "learning_rate": first.learning_rate,
        "optimizer_steps": float(first.steps),
        "dropped_groups": float(first.counts.dropped_groups),
        "flat_groups": float(first.counts.flat_groups),
        "seconds_learner": seconds,
        f"learner_{first.unit}s_per_second": first.size / seconds,
    }
