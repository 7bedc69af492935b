"""Back-pressure: how many groups may be in flight, and how many workers a pool should have.

Two questions, two answers:

- Groups in flight: additive increase, multiplicative decrease on two backlogs, with a gap between the watermarks in
  which nothing changes. The backlogs are what is observed anyway, and rollout times have tails so long that a
  controller which needs a gain or a model of them would be tuned for one horizon only; this rule finds the edge of
  saturation for any, and backs off in O(log) looks when a role slows down.
- Workers of an elastic pool: the offered load over the share of time a worker should be busy (Little's law),
  rate * seconds / utilisation, the rate being what the learner can take.

A pool changes only when several looks in a row agree, and only by more than its deadband. No clock: the caller decides
when to look. How many groups a scorer is handed ahead is a setting: two hide the driver's round trip, a few
milliseconds, wherever a score takes longer than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from roboalign_ray.config.asynchrony import BackpressureConfig, ElasticConfig

STEPS = 16  # looks that it takes to go from nothing to one group in flight per rollout worker


@dataclass(frozen=True)
class Observation:
    """What is seen at one look. Seconds are means over recent groups; 0 where nothing is known yet.

    Attributes:
        running: groups in flight: being rolled out, waiting for a scorer, or being scored.
        scorer_queue: those of them handed to a scorer and not yet answered, or waiting for one.
        ready: finished groups that wait for an update.
        learner_busy: share of the time since the last look that the learner worked.
        rollout_workers, scorer_workers: workers that are up.
        rollout_seconds, scorer_seconds: of one group on one worker.
        learner_seconds: of one update.
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
    """What should be: groups in flight at most, and workers."""

    concurrency: int
    rollout_workers: int
    scorer_workers: int


class AimdLimit:
    """A bound that grows by steps and shrinks by a factor.

    Args:
        least, most: inclusive.
        decrease: factor in (0, 1).
        value: at the beginning; None takes `most`.
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
    """A whole number that follows a wish only when `patience` looks in a row wish it clearly, in one direction.

    Args:
        value: at the beginning.
        least, most: inclusive.
        deadband: relative difference from the value below which a wish is none.
    """

    def __init__(self, value: int, least: int, most: int, *, patience: int, deadband: float = 0.0) -> None:
        self.value, self.least, self.most = min(max(value, least), most), least, most
        self.patience, self.deadband = patience, deadband
        self.streak = 0  # looks in a row, negative where they wish for less

    def wish(self, wanted: float) -> int:
        """One look; the value after it."""
        goal = math.ceil(min(max(wanted, self.least), self.most) - 1e-9)
        sign = (goal > self.value) - (goal < self.value)
        if abs(goal - self.value) <= self.deadband * self.value:
            sign = 0
        self.streak = self.streak + sign if sign * self.streak > 0 else sign
        if abs(self.streak) >= self.patience:
            self.value, self.streak = goal, 0
        return self.value


class BackpressureController:
    """Turns observations into targets.

    Args:
        config: watermarks, bounds and patience.
        batch: groups per update.
        most: groups in flight that are never exceeded; (eta + 1) * batch is all that the ledger would allow.
        rollout_workers, scorer_workers: at the beginning; fixed where the pool is not elastic.
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
        """What holds at present."""
        return Targets(self._limit.value, self._rollout.value, self._scorer.value)

    def observe(self, seen: Observation) -> Targets:
        """One look: the targets after it."""
        self._steer_concurrency(seen)
        self._steer_pools(seen)
        return self.targets

    def backlogs(self, seen: Observation) -> tuple[float, float]:
        """The scorers' in full queues, and the learner's in finished batches.

        Ready groups count for the learner as far as it works: while it rests they wait for others, not for it.
        """
        room = max(1, seen.scorer_workers) * self.config.depth
        return seen.scorer_queue / room, seen.ready / self.batch * seen.learner_busy

    def _steer_concurrency(self, seen: Observation) -> None:
        worst = max(self.backlogs(seen))
        if worst > self.config.high:
            self._limit.lower()
        elif worst < self.config.low and seen.running >= self._limit.value:
            # A bound that nothing reaches is not raised: it would only be too high when it is needed.
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
        """What has been learned, JSON types."""
        kept = {"rollout": self._rollout, "scorer": self._scorer}
        return {
            "concurrency": self._limit.exact,
            **{name: [target.value, target.streak] for name, target in kept.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, within this controller's own bounds."""
        self._limit.exact = min(max(float(state["concurrency"]), self._limit.least), self._limit.most)
        for name, target in (("rollout", self._rollout), ("scorer", self._scorer)):
            value, target.streak = state[name]
            target.value = min(max(int(value), target.least), target.most)


def workers_for(rate: float, seconds: float, utilisation: float = 1.0) -> float:
    """Workers, each busy for that share of its time, that handle `rate` groups a second of `seconds` each."""
    return rate * seconds / utilisation
