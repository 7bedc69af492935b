"""Back-pressure: the number of groups in flight, and the number of workers of an elastic pool.

Two decisions:

- Groups in flight: additive increase and multiplicative decrease on two backlogs, with a gap between the watermarks in
  which nothing changes. The backlogs are observed anyway. Rollout times have long tails, so a controller with a gain or
  a model of them would be tuned for one horizon only. This rule finds the edge of saturation for any horizon, and needs
  O(log) observations to back off when a role slows down.
- Workers of an elastic pool: the offered load divided by the wanted utilisation (Little's law),
  rate * seconds / utilisation, where the rate is what the learner can consume.

A pool changes only when several observations in a row agree, and only by more than its deadband. There is no clock: the
caller decides when to observe. The number of groups that a scorer gets ahead is a setting: two hide the driver's round
trip of a few milliseconds if a score takes longer than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from roboalign_ray.config.asynchrony import BackpressureConfig, ElasticConfig

STEPS = 16  # observations to increase from zero to one group in flight per rollout worker


@dataclass(frozen=True)
class Observation:
    """One observation. Seconds are means over recent groups; 0 if unknown.

    Attributes:
        running: groups in flight: being rolled out, waiting for a scorer, or being scored.
        scorer_queue: those that wait for a scorer or for its answer.
        ready: finished groups that wait for an update.
        learner_busy: share of the time since the last observation that the learner worked.
        rollout_workers, scorer_workers: workers that are up.
        rollout_seconds, scorer_seconds: seconds of one group on one worker.
        learner_seconds: seconds of one update.
    """

    running: int
    scorer_queue: int
    ready: int
    learner_busy: float
    rollout_workers: int
    scorer_workers: int
    rollout_seconds: float = 0.0
    scorer_seconds: float = 0.0
    learner_seconds: float = 0.0


@dataclass(frozen=True)
class Targets:
    """Targets: the maximum of groups in flight, and the number of workers per pool."""

    concurrency: int
    rollout_workers: int
    scorer_workers: int


class AimdLimit:
    """A bound that grows by steps and shrinks by a factor.

    Args:
        least, most: inclusive.
        decrease: factor in (0, 1).
        value: initial value; None takes `most`.
    """

    def __init__(self, least: int, most: int, decrease: float, value: float | None = None) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"least {least} and most {most} are no range")
        self.least, self.most, self.decrease = least, most, decrease
        self.exact = float(most if value is None else value)

    @property
    def value(self) -> int:
        """The bound."""
        return int(self.exact)

    def raise_by(self, step: float) -> None:
        """Additive increase."""
        self.exact = min(float(self.most), self.exact + step)

    def lower(self) -> None:
        """Multiplicative decrease."""
        self.exact = max(float(self.least), self.exact * self.decrease)


class PatientTarget:
    """A whole number that follows requests only after `patience` clear requests in a row in the same direction.

    Args:
        value: initial value.
        least, most: inclusive.
        deadband: a smaller relative difference from the value counts as no request.
    """

    def __init__(self, value: int, least: int, most: int, *, patience: int, deadband: float = 0.0) -> None:
        self.value, self.least, self.most = min(max(value, least), most), least, most
        self.patience, self.deadband = patience, deadband
        self.streak = 0  # requests in a row; negative for a decrease

    def wish(self, wanted: float) -> int:
        """Observe one request. Return the value after it."""
        goal = math.ceil(min(max(wanted, self.least), self.most) - 1e-9)
        sign = (goal > self.value) - (goal < self.value)
        if abs(goal - self.value) <= self.deadband * self.value:
            sign = 0
        self.streak = self.streak + sign if sign * self.streak > 0 else sign
        if abs(self.streak) >= self.patience:
            self.value, self.streak = goal, 0
        return self.value


class BackpressureController:
    """Computes targets from observations.

    Args:
        config: watermarks, bounds and patience.
        batch: groups per update.
        most: maximum of groups in flight, never exceeded; the ledger's own limit is (eta + 1) * batch.
        rollout_workers, scorer_workers: initial numbers; fixed if the pool is not elastic.
    """

    def __init__(
        self, config: BackpressureConfig, *, batch: int, most: int, rollout_workers: int, scorer_workers: int
    ) -> None:
        self.config, self.batch = config, batch
        least = min(config.least or rollout_workers, most)
        self._limit = AimdLimit(least, most, config.decrease)
        self._rollout = self._pool(config.rollout, rollout_workers)
        self._scorer = self._pool(config.scorer, scorer_workers)

    def _pool(self, bounds: ElasticConfig, workers: int) -> PatientTarget:
        least, most = (bounds.least, bounds.most) if bounds.most else (workers, workers)
        config = self.config
        return PatientTarget(workers, least, most, patience=config.patience, deadband=config.deadband)

    @property
    def targets(self) -> Targets:
        """The current targets."""
        return Targets(self._limit.value, self._rollout.value, self._scorer.value)

    def observe(self, seen: Observation) -> Targets:
        """Observe once. Return the targets after it."""
        self._steer_concurrency(seen)
        self._steer_pools(seen)
        return self.targets

    def backlogs(self, seen: Observation) -> tuple[float, float]:
        """The scorers' backlog in full queues, and the learner's in batches of finished groups.

        Finished groups count for the learner in proportion to its utilisation: an idle learner is not their cause.
        """
        room = max(1, seen.scorer_workers) * self.config.depth
        return seen.scorer_queue / room, seen.ready / self.batch * seen.learner_busy

    def _steer_concurrency(self, seen: Observation) -> None:
        worst = max(self.backlogs(seen))
        if worst > self.config.high:
            self._limit.lower()
        elif worst < self.config.low and seen.running >= self._limit.value:
            # A bound that is not reached is not raised: it would be too high when it is needed.
            self._limit.raise_by(max(1.0, seen.rollout_workers / STEPS))

    def _steer_pools(self, seen: Observation) -> None:
        if not (seen.learner_seconds > 0 and seen.rollout_seconds > 0):
            return
        rate = self.batch / seen.learner_seconds
        self._rollout.wish(workers_for(rate, seen.rollout_seconds, self.config.utilisation))
        arriving = min(rate, self._rollout.value / seen.rollout_seconds)
        if seen.scorer_seconds > 0:
            self._scorer.wish(workers_for(arriving, seen.scorer_seconds, self.config.utilisation))

    def state_dict(self) -> dict[str, Any]:
        """The controller's state, JSON types."""
        kept = {"rollout": self._rollout, "scorer": self._scorer}
        return {
            "concurrency": self._limit.exact,
            **{name: [target.value, target.streak] for name, target in kept.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`, within this controller's own bounds."""
        self._limit.exact = min(max(float(state["concurrency"]), self._limit.least), self._limit.most)
        for name, target in (("rollout", self._rollout), ("scorer", self._scorer)):
            value, target.streak = state[name]
            target.value = min(max(int(value), target.least), target.most)


def workers_for(rate: float, seconds: float, utilisation: float = 1.0) -> float:
    """Number of workers of this utilisation that handle `rate` groups per second, each of `seconds`."""
    return rate * seconds / utilisation
