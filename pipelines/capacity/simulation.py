"""A discrete-event model of a job's rollout, scoring and learning: the expected throughput and idle time.

    rollout workers ──► bounded queue ──► scorers ──► buffer ──► learner ──► weights ──► rollout workers
          ▲ ledger: may a group start?                  ▲ ledger: may an update begin?

It uses the ledger, buffer and back-pressure controller of a real run; only the work is replaced by durations drawn
from `asynchrony.workload`. If the scorers' queue is full, a rollout worker keeps its group and waits. Workers are lost
at random with their group, which is started again; a lost learner restarts its update. The same seed gives the same
run.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.config.asynchrony import StageTimeConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.capacity.simulated_workers import SimulatedPool, draw
from roboalign_ray.scheduling.backpressure import BackpressureController, Observation
from roboalign_ray.scheduling.experience_buffer import ExperienceBuffer
from roboalign_ray.scheduling.staleness_ledger import Outcome, StalenessLedger

ROLES = ("rollout", "scorer", "learner")
_MOST_EVENTS = (
    200  # limit on events per group, worker and update; a run that makes progress needs about three
)
_RECENT = 0.05  # weight of the newest group in the mean service times for the controller


@dataclass(frozen=True)
class SimulationResult:
    """The results of a simulated run, without its first updates.

    Attributes:
        groups_per_second: trained groups per second.
        ideal_groups_per_second: rate of the slowest role without waiting and without failures.
        seconds_per_update: mean time per update.
        utilisation: share of time in which a role's workers worked; for the learner, only updates count.
        blocked: share of time in which rollout workers waited with a group because the scorers' queue was full.
        workers: mean number of workers by role.
        staleness: number of trained groups by age in versions, over the whole run.
        counts: counts of the ledger, over the whole run.
        concurrency: allowed number of groups in flight at the end; None if only staleness bounds it.
        events: number of simulated events.
    """

    groups_per_second: float
    ideal_groups_per_second: float
    seconds_per_update: float
    utilisation: dict[str, float]
    blocked: float
    workers: dict[str, float]
    staleness: dict[int, int]
    counts: dict[str, int]
    concurrency: int | None
    events: int

    @property
    def bottleneck(self) -> str:
        """The role with the highest utilisation."""
        return max(self.utilisation, key=lambda role: self.utilisation[role])

    @property
    def mean_staleness(self) -> float:
        """Mean age of trained groups, in versions."""
        total = sum(self.staleness.values())
        return sum(age * number for age, number in self.staleness.items()) / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        extra = {"bottleneck": self.bottleneck, "mean_staleness": self.mean_staleness}
        return {**asdict(self), **extra, "staleness": {str(k): v for k, v in self.staleness.items()}}


def stage_rates(config: JobConfig) -> dict[str, float]:
    """Groups per second of each role without waiting: workers over seconds; inf if a stage takes no time.

    The learner's time includes the distribution of weights.
    """
    work, cluster, batch = config.asynchrony.workload, config.cluster, config.alignment.prompts_per_update
    update_s = batch * work.learner.seconds / cluster.learner.workers + work.weights_s

    def rate(amount: float, seconds: float) -> float:
        return amount / seconds if seconds > 0 else math.inf

    return {
        "rollout": rate(cluster.rollout.workers, work.rollout.seconds),
        "scorer": rate(cluster.scorer.workers, work.scorer.seconds),
        "learner": rate(batch, update_s),
    }


def simulate(config: JobConfig, updates: int = 20) -> SimulationResult:
    """Run the model. The first fifth of the updates (more than the bound on staleness) is not measured.

    Args:
        config: `cluster` gives the roles, `alignment` the batch, `asynchrony` the rest; also `seed`.
        updates: number of updates; increased if the bound on staleness needs a longer warm-up.
    """
    warm_up = max(updates // 5, config.asynchrony.staleness + 1)
    return Simulation(config).run(warm_up, max(updates, 2 * warm_up))


class Simulation:
    """One run of the model."""

    def __init__(self, config: JobConfig) -> None:
        settings, cluster = config.asynchrony, config.cluster
        self.config, self.settings, self.work = config, settings, settings.workload
        self.batch = config.alignment.prompts_per_update
        self.random = random.Random(config.seed)
        most = (settings.staleness + 1) * self.batch
        self.ledger = StalenessLedger(
            self.batch,
            settings.staleness,
            stale=settings.stale,
            overtaking=settings.overtaking,
            concurrency=settings.concurrency or None,
            tries=settings.tries,
        )
        self.buffer = ExperienceBuffer(settings.flat_groups, resample_limit=settings.resample_limit)
        self.controller = BackpressureController(
            settings.backpressure,
            batch=self.batch,
            most=min(settings.concurrency or most, most),
            rollout_workers=cluster.rollout.workers,
            scorer_workers=cluster.scorer.workers,
        )
        self.rollouts, self.scorers = (
            SimulatedPool(cluster.rollout.workers),
            SimulatedPool(cluster.scorer.workers),
        )
        self.learner = SimulatedPool(1)
        self.queue: deque[Rolled] = deque()  # with a place in a scorer's queue, not yet being scored
        self.blocked: deque[Rolled] = deque()  # each blocks its rollout worker
        self.published = [0.0]  # when each version became available
        self.publishing = False
        self.seconds = {"rollout": 0.0, "scorer": 0.0, "learner": 0.0}
        self.now = 0.0
        self.events = self._planned = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def run(self, warm_up: int, updates: int) -> SimulationResult:
        """Simulate `updates` updates; measure from the end of update `warm_up`."""
        if self.settings.backpressure.adaptive:
            self._apply_targets()
            self._after(self.settings.backpressure.every_s, self._look)
        self._start_rollouts()
        began: float | None = None
        while self.ledger.version < updates:
            self.now, _, action, arguments = heapq.heappop(self._heap)
            self.events += 1
            if self.events > _MOST_EVENTS * updates * (self.batch + self.rollouts.workers + 100):
                raise UserError(
                    f"almost no group is finished: {self.ledger.counts['failed']} failures by update "
                    f"{self.ledger.version}",
                    where="asynchrony.workload",
                    remedy="workers must live longer than a group takes: raise mean_time_to_failure_s",
                )
            action(*arguments)
            if began is None and self.ledger.version >= warm_up:
                began = self.now
                for pool in (self.rollouts, self.scorers, self.learner):
                    pool.forget(began)
        assert began is not None
        return self._result(self.now - began, updates - warm_up)

    def _result(self, elapsed: float, updates: int) -> SimulationResult:
        pools = dict(zip(ROLES, (self.rollouts, self.scorers, self.learner), strict=True))
        for pool in pools.values():
            pool.tally(self.now)
        ranks = self.config.cluster.learner.workers
        return SimulationResult(
            groups_per_second=updates * self.batch / elapsed if elapsed else math.inf,
            ideal_groups_per_second=min(stage_rates(self.config).values()),
            seconds_per_update=elapsed / updates,
            utilisation={
                role: pool.busy_s / pool.worker_s if pool.worker_s else 0.0 for role, pool in pools.items()
            },
            blocked=self.rollouts.held_s / self.rollouts.worker_s if self.rollouts.worker_s else 0.0,
            workers={
                role: pool.worker_s / elapsed * (ranks if role == "learner" else 1) if elapsed else 0.0
                for role, pool in pools.items()
            },
            staleness=dict(sorted(self.ledger.staleness_of_groups.items())),
            counts=dict(self.ledger.counts + Counter(resampled=self.buffer.counts["resampled"])),
            concurrency=self.ledger.concurrency,
            events=self.events,
        )

    # --- rollouts ------------------------------------------------------------------------------------------------

    def _start_rollouts(self) -> None:
        version = len(self.published) - 1
        free = min(self.rollouts.idle, self.ledger.capacity(version))
        if free < 1:
            return
        waiting = self.ledger.waiting[:free]
        for number in range(free):
            group = waiting[number] if number < len(waiting) else self.ledger.position
            attempt = self.ledger.start(group, version=version)
            duration = self._draw(self.work.rollout)
            self.rollouts.take(self.now)
            self._work(self.work.rollout, duration, self._rolled, self._rollout_lost, group, attempt, version)

    def _rolled(self, duration: float, group: int, attempt: int, version: int) -> None:
        self._learn("rollout", duration)
        rolled = Rolled(group, attempt, self._versions(duration, version))
        if self.scorers.idle:
            self._score(rolled)
        elif self._room() > 0:
            self.queue.append(rolled)
        else:
            self.blocked.append(rolled)
            self.rollouts.hold(self.now)
            return
        self.rollouts.give(self.now)
        self._start_rollouts()

    def _versions(self, duration: float, first: int) -> tuple[int, ...]:
        """The version of each segment of a rollout that ends now: the newest version when the segment began."""
        began, each = self.now - duration, duration / self.work.segments
        later = (
            bisect_right(self.published, began + number * each) - 1 for number in range(1, self.work.segments)
        )
        return (first, *(max(first, version) for version in later))

    def _rollout_lost(self, group: int, attempt: int, version: int) -> None:
        self.ledger.fail(group, attempt)
        self._down(self.rollouts, self.work.rollout, self._start_rollouts)
        self._start_rollouts()

    # --- scores --------------------------------------------------------------------------------------------------

    def _score(self, rolled: Rolled) -> None:
        self.scorers.take(self.now)
        duration = self._draw(self.work.scorer)
        self._work(self.work.scorer, duration, self._scored, self._scorer_lost, rolled)

    def _scored(self, duration: float, rolled: Rolled) -> None:
        self._learn("scorer", duration)
        self.scorers.give(self.now)
        self._score_next()
        if self.ledger.finish(rolled.group, rolled.attempt, rolled.versions) is Outcome.ACCEPTED:
            flat = self.work.flat_share and self.random.random() < self.work.flat_share
            if not self.buffer.add(rolled.group, None, (0.0, 0.0) if flat else (0.0, 1.0)):
                self.ledger.drop(rolled.group, "flat")
        self._start_rollouts()
        self._begin_update()

    def _score_next(self) -> None:
        while self.scorers.idle and (self.queue or self.blocked):
            self._score(self.queue.popleft() if self.queue else self._unblock())
        while self.blocked and self._room() > 0:
            self.queue.append(self._unblock())

    def _unblock(self) -> Rolled:
        self.rollouts.give(self.now, held=True)
        return self.blocked.popleft()

    def _room(self) -> int:
        """Free places in the scorers' queues, without the groups being scored."""
        return (self.settings.backpressure.depth - 1) * self.scorers.workers - len(self.queue)

    def _scorer_lost(self, rolled: Rolled) -> None:
        self.ledger.fail(rolled.group, rolled.attempt)
        self._down(self.scorers, self.work.scorer, self._score_next)
        self._start_rollouts()

    # --- updates -------------------------------------------------------------------------------------------------

    def _begin_update(self) -> None:
        if not self.learner.idle or self.publishing:
            return
        batch = self.ledger.begin_update()
        if batch is None:
            return
        self.buffer.take(batch)
        self.learner.take(self.now)
        duration = self._draw(self.work.learner) * self.batch / self.config.cluster.learner.workers
        self._work(self.work.learner, duration, self._updated, self._learner_lost)

    def _updated(self, duration: float) -> None:
        self._learn("learner", duration + self.work.weights_s)
        self.learner.give(self.now)
        self.buffer.commit()
        self.buffer.remove(self.ledger.commit_update())
        self.publishing = True
        self._after(self.work.weights_s, self._publish)

    def _publish(self) -> None:
        self.publishing = False
        self.published.append(self.now)
        self._start_rollouts()
        self._begin_update()

    def _learner_lost(self) -> None:
        self.ledger.abort_update()
        self.buffer.rollback()
        self._down(self.learner, self.work.learner, self._begin_update)

    # --- control -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        busy, self.learner.busy_since_look = self.learner.busy_since(self.now), 0.0
        every = self.settings.backpressure.every_s
        self.controller.observe(
            Observation(
                running=self.ledger.running,
                scorer_queue=len(self.queue) + len(self.blocked) + self.scorers.busy,
                ready=self.ledger.ready,
                learner_busy=min(1.0, busy / every),
                rollout_workers=self.rollouts.workers,
                scorer_workers=self.scorers.workers,
                rollout_seconds=self.seconds["rollout"],
                scorer_seconds=self.seconds["scorer"],
                learner_seconds=self.seconds["learner"],
            )
        )
        self._apply_targets()
        self._after(every, self._look)
        self._start_rollouts()

    def _apply_targets(self) -> None:
        targets = self.controller.targets
        self.ledger.concurrency = targets.concurrency
        for pool, goal, begin in (
            (self.rollouts, targets.rollout_workers, self._start_rollouts),
            (self.scorers, targets.scorer_workers, self._score_next),
        ):
            coming = goal - pool.workers - pool.coming
            pool.goal = goal
            pool.retire(self.now)
            for _ in range(max(0, coming)):
                pool.coming += 1
                self._after(self.work.provision_s, self._arrive, pool, begin)

    def _arrive(self, pool: SimulatedPool, begin: Callable[[], None]) -> None:
        pool.arrive(self.now)
        begin()

    # --- time ----------------------------------------------------------------------------------------------------

    def _after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        # Events at equal times are ordered by number, so that a run is reproducible.
        self._planned += 1
        heapq.heappush(self._heap, (self.now + seconds, self._planned, action, arguments))

    def _work(
        self,
        stage: StageTimeConfig,
        duration: float,
        done: Callable[..., None],
        lost: Callable[..., None],
        *arguments: Any,
    ) -> None:
        """Schedule `done(duration, …)` at the end of the work, or `lost(…)` if its worker is lost before."""
        mean = stage.mean_time_to_failure_s
        failure = self.random.expovariate(1 / mean) if mean else math.inf
        if failure < duration:
            self._after(failure, lost, *arguments)
        else:
            self._after(duration, done, duration, *arguments)

    def _down(self, pool: SimulatedPool, stage: StageTimeConfig, begin: Callable[[], None]) -> None:
        """A busy worker is lost and is replaced later."""
        pool.fall(self.now)
        self._after(stage.restart_s, self._back, pool, begin)

    def _back(self, pool: SimulatedPool, begin: Callable[[], None]) -> None:
        pool.rise(self.now)
        begin()

    def _learn(self, role: str, duration: float) -> None:
        known = self.seconds[role]
        self.seconds[role] = known + _RECENT * (duration - known) if known else duration

    def _draw(self, stage: StageTimeConfig) -> float:
        return draw(stage, self.random)


@dataclass(frozen=True)
class Rolled:
    """A rolled-out group that waits for its score."""

    group: int
    attempt: int
    versions: tuple[int, ...]
