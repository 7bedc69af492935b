"""The alignment loop, top to bottom: every role works while the others do, as far as the bound on staleness allows.

    prompts ─► rollout workers ─► scorers ─► buffer ─► learner ─► weights, version v+1 ─┐
       ▲  may a group start?          may an update begin?  ▲                           │
       └──────────── staleness ledger ──────────────────────┴───────────────────────────┘

The driver holds references and numbers: tokens go from worker to worker, pixels never leave one. Weights travel with
each call, and are offered to workers in the middle of one, who take them at their next segment. With staleness 0 the
ledger lets the roles take turns only: the same loop is then the synchronous run, bit for bit.
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

_TURN_S = 0.5  # longest wait before heartbeats, deadlines and interruptions are looked at
_OFFER_S = 0.25  # a call that ends sooner after an update needs no offer: the next one brings the weights

Stopped = Callable[[], bool]


class Interrupted(Exception):
    """Somebody asked the job to end."""


@dataclass
class Crew:
    """The workers of a job, by role; the learner is another one after it was lost. No judge where none rewards."""

    workforce: Workforce
    rollouts: WorkerPool
    scorers: WorkerPool
    learner: Learner
    judge: OnlineJudge | None = None


@dataclass(frozen=True)
class Rolled:
    """Groups that wait for a scorer: tickets and the reference to their tokens, in the same order."""

    source: Source
    tickets: list[Ticket]
    reference: Any


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on held-out prompts: scalars, and GIFs by prompt, generated beside real."""

    scalars: dict[str, float]
    videos: dict[str, bytes]


@dataclass(frozen=True)
class Update:
    """What one update did: the groups it trained, by number, and the attempts that failed since the one before."""

    index: int
    groups: list[tuple[int, Finished]]
    failures: list[tuple[Ticket, Failed]]
    scalars: dict[str, float]


class AlignmentLoop:
    """One run's loop.

    Attributes:
        groups: the groups of training and their accounts.
        weights: newest version.
        controller: steers how many groups are in flight; with staleness 0 nothing is steered.
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
        self._published_at: float | None = None  # weights that are still to be offered
        self._learner_seconds = 0.0

    @property
    def version(self) -> int:
        """Updates done."""
        return self.groups.ledger.version

    def updates(self, stopped: Stopped) -> Iterator[Update]:
        """Every update from here to the last one, when it is done; rollouts go on meanwhile.

        Raises:
            Interrupted: `stopped` says so.
            RoleLost: the learner was lost, or its weights came damaged: the last checkpoint has both.
            RoleFailure: workers were lost for good, a deadline passed, or nothing can be scored.
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
        """Show an update to the judge. With staleness 0 what follows from that is waited for, else it goes on beside.

        Raises:
            Interrupted: `stopped` says so.
            RoleFailure, UserError: as `updates`; or the student fails its gate too often.
        """
        judge = self.crew.judge
        if judge is None:
            return
        judge.observe(update.index + 1, [finished for _, finished in update.groups])
        if not self.config.asynchrony.staleness:
            self._wait(lambda: judge.busy, stopped)

    def _wait(self, busy: Callable[[], bool], stopped: Stopped) -> None:
        """Turns in which nothing new is rolled out or trained."""
        while busy():
            self._work_beside()
            self.crew.workforce.turn(_TURN_S)
            if stopped():
                raise Interrupted

    def _work_beside(self) -> None:
        if self.crew.judge is not None:
            self.crew.judge.work()

    def drain(self, seconds: float) -> Update | None:
        """Let an update under way end; None where there was none. `crew.learner.busy` tells whether it did not."""
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
        """All that the next update depends on but the learner, JSON types; `pack` names a finished group's file."""
        return {
            "groups": self.groups.state_dict(pack),
            "controller": self.controller.state_dict(),
            "tally": asdict(self._tally),
        }

    def load_state_dict(self, state: dict[str, Any], unpack: Callable[[Any], Finished]) -> None:
        """Take up what `state_dict` gave."""
        self.groups.load_state_dict(state["groups"], unpack)
        self.controller.load_state_dict(state["controller"])
        self._tally = Tally(**state["tally"])
        self._staleness = Counter(self.groups.ledger.staleness_of_segments)

    # --- prompts ─► rollout workers ------------------------------------------------------------------------------

    def _roll_out(self) -> None:
        sources: list[Source] = [self._held_out] if self._held_out else [self.groups]
        # With staleness 0 the roles take turns here too, and share the machine with nobody.
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
                    weights.era,
                    then=partial(self._rolled_out, source, tickets),
                    size=len(tickets),
                    returns=2,
                    about={"version": weights.version, **_about(source, tickets)},
                )

    def _rolled_out(
        self, source: Source, tickets: list[Ticket], call: Call, answer: RolloutReport | Failed
    ) -> None:
        if isinstance(answer, Failed):
            if answer.kind == "weights":  # damaged on the way: every worker would refuse this version
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
            # Numbers of other rollouts must neither train nor be written down under these names.
            _fail_all(source, tickets, Failed("the scorer's reply tells of other rollouts", "reply"))
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
        """The newest weights to all that are in the middle of a rollout which began before them."""
        published = self._published_at
        if published is None or time.monotonic() - published < _OFFER_S:
            return
        self._published_at = None
        for worker in self.crew.rollouts.workers:
            if worker.up and worker.calls and worker.since < published:
                self._offer(worker)

    def _offer(self, worker: Any) -> None:
        """The newest weights to a worker in the middle of a rollout; should it not take them, its next call tells."""
        newest = self.weights
        self.crew.workforce.send(
            worker,
            "load_weights",
            newest.version,
            newest.reference,
            newest.era,
            then=lambda call, answer: None,
            group=OFFER,
            about={"version": newest.version},
        )

    # --- figures and steering ------------------------------------------------------------------------------------

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
        """Groups handed to a scorer and not yet answered, or waiting for one."""
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
    """The controller of a job with so many workers, at its beginning."""
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
    """What observers are told of a call: the numbers of its groups, and whether they are an evaluation's."""
    return {"groups": [ticket.number for ticket in tickets]} | ({} if source.training else {"held_out": True})
