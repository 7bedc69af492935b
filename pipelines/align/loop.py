"""The alignment loop: all roles work at the same time, as far as the bound on staleness allows.

    prompts ─► rollout workers ─► scorers ─► buffer ─► learner ─► weights, version v+1 ─┐
       ▲  may a group start?          may an update begin?  ▲                           │
       └──────────── staleness ledger ──────────────────────┴───────────────────────────┘

The driver holds references and numbers: rollouts are sent from worker to worker, and pixels never leave a worker.
Weights are passed with each call, and are also offered to workers during a rollout, which use them from their next
segment on. With staleness 0, the ledger makes the roles take turns: the same loop is then the synchronous run, bit for
bit.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from roboalign_ray.alignment.records.scored import GroupRecord, reward_scalars
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.pipelines.align.groups import Finished, HeldOutGroups, Source, Ticket, TrainingGroups
from roboalign_ray.pipelines.align.held_out_videos import Videos
from roboalign_ray.pipelines.align.learner import Learner, Weights
from roboalign_ray.pipelines.align.loop_metrics import Pace, Tally, ages
from roboalign_ray.pipelines.align.online_judge import OnlineJudge
from roboalign_ray.pipelines.cluster.runtime import OFFER
from roboalign_ray.pipelines.cluster.worker_pool import Call, RoleLost, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce
from roboalign_ray.scheduling.backpressure import BackpressureController, Observation
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule
from roboalign_ray.world_model.protocol import RolloutReport

_TURN_S = 0.5  # longest wait between checks of heartbeats, deadlines and interruptions
_OFFER_S = (
    0.25  # no offer to a call that ends within this time after an update: the next call has the weights
)

Stopped = Callable[[], bool]


class Interrupted(Exception):
    """The job was asked to stop."""


@dataclass
class Crew:
    """The workers of a job, by role. A lost learner is replaced. `judge` is None if the reward needs none."""

    workforce: Workforce
    rollouts: WorkerPool
    scorers: WorkerPool
    learner: Learner
    judge: OnlineJudge | None = None


@dataclass(frozen=True)
class Rolled:
    """Groups that wait for a scorer: tickets and the reference to their rollouts, in the same order."""

    source: Source
    tickets: list[Ticket]
    reference: Any


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on held-out prompts: scalars, and GIFs by prompt (generated beside real)."""

    scalars: dict[str, float]
    videos: dict[str, bytes]


@dataclass(frozen=True)
class Update:
    """One update's groups by number, and the attempts that failed since the previous update."""

    index: int
    groups: list[tuple[int, Finished]]
    failures: list[tuple[Ticket, Failed]]
    scalars: dict[str, float]


class AlignmentLoop:
    """The loop of one run.

    Attributes:
        groups: the training groups.
        weights: the newest version.
        controller: controls the number of groups in flight; unused with staleness 0.
    """

    def __init__(
        self, config: JobConfig, crew: Crew, schedule: PromptSchedule, weights: Weights | None = None
    ) -> None:
        self.config, self.crew, self.schedule = config, crew, schedule
        self.weights, self.groups = weights or Weights(), TrainingGroups(config, schedule)
        self.controller = controller_of(config, len(crew.rollouts.workers), len(crew.scorers.workers))
        self._held_out: HeldOutGroups | None = None
        self._rolled: deque[Rolled] = deque()
        self._finished: deque[Update] = deque()
        self._tally, self._pace, self._staleness = Tally(), Pace(), Counter[int]()
        self._mark = self._looked = time.monotonic()
        self._published_at: float | None = None  # time of weights that are not offered yet
        self._learner_seconds = 0.0

    @property
    def version(self) -> int:
        """Number of completed updates."""
        return self.groups.ledger.version

    def updates(self, stopped: Stopped) -> Iterator[Update]:
        """Yield every update from here to the last one when it is complete; rollouts continue meanwhile.

        Raises:
            Interrupted: `stopped` was set.
            RoleLost: the learner was lost, or its weights arrived damaged; both are in the last checkpoint.
            RoleFailure: a role has no worker left, or a deadline passed.
            UserError: nothing can be scored.
            UserError: bad input found by a worker.
        """
        self._mark = time.monotonic()
        while self.version < self.groups.last:
            self._turn(stopped)
            while self._finished:
                yield self._finished.popleft()
                self._mark = time.monotonic()

    def evaluate(self, stopped: Stopped) -> Evaluation:
        """Rewards on held-out prompts with the newest weights; no update begins meanwhile. Raises as `updates`."""
        self._held_out = HeldOutGroups(self.config, self.schedule)
        while not self._held_out.done:
            self._turn(stopped)
        done, self._held_out = self._held_out, None
        scalars = done.scalars()
        judge = self.crew.judge
        if judge is not None:
            self._wait(judge.audit(self.version, done.groups), stopped)
        videos = Videos(self.crew.workforce, self.crew.scorers, done.groups[: self.config.telemetry.videos])
        self._wait(videos.work, stopped)
        return Evaluation(scalars, videos.made)

    def judge(self, update: Update, stopped: Stopped) -> None:
        """Pass an update to the judge. With staleness 0, wait until the judge has finished.

        Raises:
            Interrupted: `stopped` was set.
            RoleFailure, UserError: as `updates`; or the student fails its gate too often.
        """
        judge = self.crew.judge
        if judge is None:
            return
        judge.observe(update.index + 1, [finished for _, finished in update.groups])
        if not self.config.asynchrony.staleness:
            self._wait(lambda: judge.busy, stopped)

    def _wait(self, busy: Callable[[], bool], stopped: Stopped) -> None:
        """Handle answers without starting new rollouts or updates."""
        while busy():
            self._work_beside()
            self.crew.workforce.turn(_TURN_S)
            if stopped():
                raise Interrupted

    def _work_beside(self) -> None:
        if self.crew.judge is not None:
            self.crew.judge.work()

    def drain(self, seconds: float) -> Update | None:
        """Wait for a running update; None if there is none. If it is late, `crew.learner.busy` stays true."""
        ends = time.monotonic() + seconds
        while self.crew.learner.busy and time.monotonic() < ends:
            self.crew.workforce.turn(_TURN_S)
        return self._finished.popleft() if self._finished else None

    def _turn(self, stopped: Stopped) -> None:
        self._roll_out()
        self._score()
        self._train()
        self._offer_weights()
        self._work_beside()
        self.crew.workforce.turn(_TURN_S)
        self._steer()
        if stopped():
            raise Interrupted

    def state_dict(self, pack: Callable[[Finished], Any]) -> dict[str, Any]:
        """The loop's state without the learner, JSON types; `pack` returns the file name of a finished group."""
        return {
            "groups": self.groups.state_dict(pack),
            "controller": self.controller.state_dict(),
            "tally": asdict(self._tally),
        }

    def load_state_dict(self, state: dict[str, Any], unpack: Callable[[Any], Finished]) -> None:
        """Restore a `state_dict`."""
        self.groups.load_state_dict(state["groups"], unpack)
        self.controller.load_state_dict(state["controller"])
        self._tally = Tally(**state["tally"])
        self._staleness = Counter(self.groups.ledger.staleness_of_segments)

    # --- prompts ─► rollout workers ------------------------------------------------------------------------------

    def _roll_out(self) -> None:
        sources: list[Source] = [self._held_out] if self._held_out else [self.groups]
        # With staleness 0, the roles take turns here too, and each has the machine to itself.
        if self._held_out and self.config.asynchrony.staleness:
            sources.append(self.groups)
        for source in sources:
            while (worker := self.crew.rollouts.free()) and (tickets := source.next_call()):
                weights = self.weights
                self.crew.workforce.send(
                    worker,
                    "rollout",
                    [ticket.name for ticket in tickets],
                    [ticket.seeds for ticket in tickets],
                    weights.version,
                    weights.reference,
                    weights.incarnation,
                    then=partial(self._rolled_out, source, tickets),
                    size=len(tickets),
                    returns=2,
                    about={"version": weights.version, **_about(source, tickets)},
                )

    def _rolled_out(
        self, source: Source, tickets: list[Ticket], call: Call, answer: RolloutReport | Failed
    ) -> None:
        if isinstance(answer, Failed):
            if answer.kind == "weights":  # damaged in transfer: every worker would refuse this version
                raise RoleLost(answer.reason)
            _fail_all(source, tickets, answer)
            return
        made = []
        for ticket in tickets:
            failed = answer.failed.get(ticket.name.prompt_id)
            if failed is None:
                made.append(ticket)
            else:
                source.fail(ticket, failed)
        if source.training:
            self._tally.rolled(call, answer)
        self._pace.learn("rollout", call.seconds / len(tickets))
        if made:
            self._rolled.append(Rolled(source, made, call.values[0]))

    # --- rollout workers ─► scorers ─► buffer --------------------------------------------------------------------

    def _score(self) -> None:
        depth = self.config.asynchrony.backpressure.depth
        while self._rolled and (worker := self.crew.scorers.free(len(self._rolled[0].tickets), depth)):
            rolled = self._rolled.popleft()
            self.crew.workforce.send(
                worker,
                "score",
                rolled.reference,
                self.crew.judge.student.reference if self.crew.judge else [],
                then=partial(self._scored, rolled.source, rolled.tickets),
                size=len(rolled.tickets),
                returns=len(rolled.tickets) + 1,
                about=_about(rolled.source, rolled.tickets),
            )

    def _scored(
        self, source: Source, tickets: list[Ticket], call: Call, answer: list[GroupRecord] | Failed
    ) -> None:
        if isinstance(answer, Failed):
            _fail_all(source, tickets, answer)
            return
        if [(record.prompt_id, record.seeds) for record in answer] != [
            (ticket.name.prompt_id, ticket.seeds) for ticket in tickets
        ]:
            # Numbers of other rollouts must neither be trained on nor written to the journal under these names.
            _fail_all(source, tickets, Failed("the scorer's reply is about other rollouts", "reply"))
            return
        self._pace.learn("scorer", call.seconds / len(tickets))
        if source.training:
            self._tally.scorer_s += call.seconds
        for ticket, reference, record in zip(tickets, call.values, answer, strict=True):
            source.finish(ticket, Finished(reference, record))

    # --- buffer ─► learner ─► weights ----------------------------------------------------------------------------

    def _train(self) -> None:
        if self.crew.learner.busy or self._held_out is not None:
            return
        batch = self.groups.begin_update()
        if batch is not None:
            about = {"version": self.version, "groups": list(self.groups.ledger.training)}
            self.crew.learner.update([finished.reference for finished in batch], self._published, about)

    def _published(self, scalars: dict[str, float], weights: Weights) -> None:
        index, self.weights = self.version, weights
        trained, failures = self.groups.commit_update(), self.groups.failures
        self.groups.failures = []
        self._pace.learn("learner", scalars["seconds_learner"] + scalars["seconds_weights"])
        figures = self._figures([done.record for _, done in trained], failures) | scalars
        self._finished.append(Update(index, trained, failures, figures))
        self._tally = Tally()
        self._published_at = time.monotonic() if self.config.asynchrony.staleness else None

    def _offer_weights(self) -> None:
        """Offer the newest weights to all workers whose rollout began before them."""
        published = self._published_at
        if published is None or time.monotonic() - published < _OFFER_S:
            return
        self._published_at = None
        for worker in self.crew.rollouts.workers:
            if worker.up and worker.calls and worker.since < published:
                self._offer(worker)

    def _offer(self, worker: Any) -> None:
        """Offer the newest weights to a worker during a rollout. If that fails, the next call has the weights."""
        newest = self.weights
        self.crew.workforce.send(
            worker,
            "load_weights",
            newest.version,
            newest.reference,
            newest.incarnation,
            then=lambda call, answer: None,
            group=OFFER,
            about={"version": newest.version},
        )

    # --- figures and control -------------------------------------------------------------------------------------

    def _figures(self, records: list[GroupRecord], failures: list[tuple[Ticket, Failed]]) -> dict[str, float]:
        ledger, crew = self.groups.ledger, self.crew
        before, self._staleness = self._staleness, Counter(ledger.staleness_of_segments)
        units = sum(record.units for record in records)
        kinds = Counter(failed.kind for _, failed in failures)
        return {
            **reward_scalars(records),
            "failed_groups": float(len(failures)),
            **{f"failures/{kind}": float(count) for kind, count in sorted(kinds.items())},
            **self._tally.scalars(units, len(crew.rollouts.workers), len(crew.scorers.workers)),
            **ages(before, self._staleness),
            "groups_running": float(ledger.running),
            "groups_ready": float(ledger.ready),
            "scorer_queue": float(self.scorer_queue()),
            "resampled_groups": float(self.groups.buffer.counts["resampled"]),
            "prompts_set_aside": float(len(ledger.set_aside)),
            "workers_lost": float(crew.workforce.lost),
            "seconds": time.monotonic() - self._mark,
        }

    def scorer_queue(self) -> int:
        """Number of groups that wait for a scorer or its answer."""
        waiting = sum(len(rolled.tickets) for rolled in self._rolled)
        return waiting + sum(worker.load for worker in self.crew.scorers.workers)

    def _steer(self) -> None:
        settings, now = self.config.asynchrony.backpressure, time.monotonic()
        if (
            not (self.config.asynchrony.staleness and settings.adaptive)
            or now - self._looked < settings.every_s
        ):
            return
        crew, pace = self.crew, self._pace
        seen = Observation(
            running=self.groups.ledger.running,
            scorer_queue=self.scorer_queue(),
            ready=self.groups.ledger.ready,
            learner_busy=min(1.0, (crew.learner.seconds - self._learner_seconds) / (now - self._looked)),
            rollout_workers=crew.rollouts.up,
            scorer_workers=crew.scorers.up,
            rollout_seconds=pace.of("rollout"),
            scorer_seconds=pace.of("scorer"),
            learner_seconds=pace.of("learner"),
        )
        self._looked, self._learner_seconds = now, crew.learner.seconds
        targets = self.controller.observe(seen)
        self.groups.ledger.concurrency = targets.concurrency
        if settings.rollout.most:
            crew.workforce.resize(crew.rollouts, targets.rollout_workers)
        if settings.scorer.most:
            crew.workforce.resize(crew.scorers, targets.scorer_workers)


def controller_of(config: JobConfig, rollout_workers: int, scorer_workers: int) -> BackpressureController:
    """The controller of a job with this number of workers, at its beginning."""
    settings, batch = config.asynchrony, config.alignment.prompts_per_update
    most = (settings.staleness + 1) * batch
    return BackpressureController(
        settings.backpressure,
        batch=batch,
        most=min(settings.concurrency or most, most),
        rollout_workers=rollout_workers,
        scorer_workers=scorer_workers,
    )


def _fail_all(source: Source, tickets: list[Ticket], failed: Failed) -> None:
    for ticket in tickets:
        source.fail(ticket, failed)


def _about(source: Source, tickets: list[Ticket]) -> dict[str, Any]:
    """Details of a call for observers: the numbers of its groups, and whether they are of an evaluation."""
    return {"groups": [ticket.number for ticket in tickets]} | ({} if source.training else {"held_out": True})
