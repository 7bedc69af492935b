"""The groups of the alignment loop: which start next, and how finished and failed ones are handled.

Two sources give the loop groups and take back the results: the training groups, which the staleness ledger and the
experience buffer track, and the groups of an evaluation on held-out prompts. Groups have numbers. A group's prompt and
seeds are functions of its number, so a group that is started again, or in a resumed run, is the same.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, Protocol

from roboalign_ray.alignment.advantages import rewards_of
from roboalign_ray.alignment.records.scored import GroupRecord, reward_scalars
from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.scheduling.experience_buffer import ExperienceBuffer
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule
from roboalign_ray.scheduling.staleness_ledger import Outcome, StalenessLedger

_HELD_OUT = -1  # stands for the update in the seeds of held-out prompts
_FAR = 100  # limit on updates searched for a prompt that is not set aside


@dataclass(frozen=True)
class Ticket:
    """One attempt at one group."""

    number: int
    attempt: int
    name: PromptName
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """A scored group: a reference to its rollout and scores, and its numbers."""

    reference: Any
    record: GroupRecord


class Source(Protocol):
    """Gives out groups and takes them back. Every ticket comes back once, finished or failed."""

    training: bool

    def next_call(self) -> list[Ticket]:
        """Groups that one rollout worker runs as one batch; empty if none may start now."""
        ...

    def finish(self, ticket: Ticket, finished: Finished) -> None:
        """Called when the group was rolled out and scored."""
        ...

    def fail(self, ticket: Ticket, failed: Failed) -> None:
        """Called when the rollout or the score failed."""
        ...


def split_evenly(items: int, workers: int) -> list[range]:
    """Contiguous shares, so that the order of groups does not depend on the number of workers."""
    edges = [items * worker // workers for worker in range(workers + 1)]
    return [range(edges[w], edges[w + 1]) for w in range(workers)]


class Numbering:
    """Prompt and seeds of every training group, by its number."""

    def __init__(self, schedule: PromptSchedule, batch: int, samples: int) -> None:
        self.batch = batch
        self.name = lru_cache(8 * batch)(lambda number: schedule.train(number, 1)[0])
        self._seeds = lru_cache(8)(lambda update: schedule.seeds(update, batch, samples))

    def ticket(self, number: int, attempt: int) -> Ticket:
        """The ticket of an attempt at a group."""
        update, place = divmod(number, self.batch)
        return Ticket(number, attempt, self.name(number), self._seeds(update)[place])


class TrainingGroups:
    """The training groups.

    The composition of a batch depends on the groups' numbers alone, not on which worker is free. With staleness 0, a
    batch is therefore the same in every run, and so is the last bit of every log-probability.

    Args:
        version: number of completed updates; the first group is the first one of the next update.

    Attributes:
        ledger, buffer: staleness ledger and experience buffer.
        last: number of updates of the whole run; groups beyond the last update are not started.
        failures: (ticket, reason) of all attempts that failed since the last update.
    """

    training = True

    def __init__(self, config: JobConfig, schedule: PromptSchedule, version: int = 0) -> None:
        settings, batch = config.asynchrony, config.alignment.prompts_per_update
        self.ledger = StalenessLedger(
            batch,
            settings.staleness,
            stale=settings.stale,
            overtaking=settings.overtaking,
            concurrency=settings.concurrency or None,
            tries=settings.tries,
            version=version,
        )
        self.ledger.position = version * batch
        self.buffer = ExperienceBuffer(settings.flat_groups, resample_limit=settings.resample_limit)
        self.failures: list[tuple[Ticket, Failed]] = []
        self.last = config.alignment.updates
        size = settings.groups_per_call
        shares = -(-batch // size) if size else min(config.cluster.rollout.workers, batch)
        edges = [share[-1] + 1 for share in split_evenly(batch, shares)]
        self._share_end = {place: min(e for e in edges if e > place) for place in range(batch)}
        self._numbering = Numbering(schedule, batch, config.alignment.group_size)
        self._training: list[tuple[int, Finished]] = []
        self._together: dict[int, tuple[int, ...]] = {}  # by group: the groups of its rollout batch
        self._alone: set[int] = (
            set()
        )  # failed in a batch with others: tried again alone, to find the group that causes the failure
        self._barren = 0  # number of prompts set aside in a row

    def next_call(self) -> list[Ticket]:
        """Waiting groups first, then new ones; at most one share of an update."""
        ledger = self.ledger
        wanted = self.last * ledger.batch - ledger.accepted - ledger.running
        room = min(ledger.capacity(), wanted)
        if room < 1:
            return []
        waiting = ledger.waiting
        numbers = (self._share(waiting) if waiting else self._share(self._new_numbers()))[:room]
        for batch in self._batches(numbers):
            self._together |= dict.fromkeys(batch, batch)
        return [self._start(number) for number in numbers]

    def _batches(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        """A call's groups as the engine's batches: groups of one horizon and one length of shared history."""
        batches: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number in numbers:
            name = self._numbering.name(number)
            batches[name.horizon, name.shared].append(number)
        return [tuple(batch) for batch in batches.values()]

    def _share(self, numbers: Iterable[int]) -> list[int]:
        """The first number, and those after it in the same share."""
        found = iter(numbers)
        first = next(found, None)
        if first is None:
            raise UserError(
                "every prompt is set aside: none could be rolled out and scored", where="alignment"
            )
        if first in self._alone:
            return [first]
        update, place = divmod(first, self.ledger.batch)
        end = update * self.ledger.batch + self._share_end[place]
        return [first, *takewhile(lambda n: n < end and n not in self._alone, found)]

    def _new_numbers(self) -> Iterator[int]:
        """Numbers that were never started and whose prompts are not set aside."""
        first, barred = self.ledger.position, self.ledger.set_aside
        numbers = range(first, first + _FAR * self.ledger.batch)
        return (number for number in numbers if self._numbering.name(number).prompt_id not in barred)

    def _start(self, number: int) -> Ticket:
        attempt = self.ledger.start(number, self._numbering.name(number).prompt_id)
        return self._numbering.ticket(number, attempt)

    def finish(self, ticket: Ticket, finished: Finished) -> None:
        """Put the group into the buffer. A group without any scored sample has failed."""
        scores = finished.record.scores
        reasons = [score for score in scores if isinstance(score, Failed)]
        if len(reasons) == len(scores):
            self.fail(ticket, reasons[0])
            return
        outcome = self.ledger.finish(ticket.number, ticket.attempt, finished.record.versions)
        if outcome is Outcome.ACCEPTED:
            self._alone.discard(ticket.number)
            self._barren = 0
            if not self.buffer.add(ticket.number, finished, rewards_of(scores).tolist()):
                self.ledger.drop(ticket.number, "flat")

    def fail(self, ticket: Ticket, failed: Failed) -> None:
        """Queue the group for another attempt, or set its prompt aside.

        Raises:
            UserError: as many prompts were set aside in a row as an update has groups.
        """
        outcome = self.ledger.fail(ticket.number, ticket.attempt)
        if outcome in (Outcome.LATE, Outcome.DUPLICATE):
            return
        self.failures.append((ticket, failed))
        self._alone.add(ticket.number)
        if outcome is Outcome.SET_ASIDE:
            self._alone.discard(ticket.number)
            self._barren += 1
            if self._barren >= self.ledger.batch:
                reason = failed.reason
                raise UserError(f"no rollout could be scored; the last reason: {reason}", where="alignment")

    def begin_update(self) -> list[Finished] | None:
        """Groups of the next update, in the ledger's order; None if it has to wait."""
        numbers = self.ledger.begin_update()
        if numbers is None:
            return None
        self._training = [(held.group, held.reference) for held in self.buffer.take(numbers)]
        return [finished for _, finished in self._training]

    def commit_update(self) -> list[tuple[int, Finished]]:
        """Complete the update. Return its groups by number; references to their rollouts are dropped here."""
        done, self._training = self._training, []
        trained = [(number, self._with_rollout_group(number, group)) for number, group in done]
        self.buffer.commit()
        self.buffer.remove(self.ledger.commit_update())
        live = {number for number, _, _ in self.ledger.prompts()}
        self._together = {number: call for number, call in self._together.items() if number in live}
        return trained

    def _with_rollout_group(self, number: int, group: Finished) -> Finished:
        """The group, with the numbers of the groups of its rollout batch."""
        record = replace(group.record, together=self._together.get(number, (number,)))
        return replace(group, record=record)

    def state_dict(self, pack: Callable[[Finished], Any]) -> dict[str, Any]:
        """Ledger, buffer and position, JSON types. `pack` returns the file name of a finished group."""
        return {
            "ledger": self.ledger.state_dict(),
            "buffer": self.buffer.state_dict(pack),
            "alone": sorted(self._alone),
            "together": sorted(self._together.items()),
        }

    def load_state_dict(self, state: dict[str, Any], unpack: Callable[[Any], Finished]) -> None:
        """Restore a `state_dict`. Groups in flight wait to be started again."""
        self.ledger.load_state_dict(state["ledger"])
        self.buffer.load_state_dict(state["buffer"], unpack)
        self.ledger.recover()
        self.buffer.rollback()
        self._alone = set(state["alone"])
        self._together = {number: tuple(call) for number, call in state.get("together", [])}


class HeldOutGroups:
    """One evaluation: the same prompts and seeds every time, divided evenly among the workers."""

    training = False

    def __init__(self, config: JobConfig, schedule: PromptSchedule) -> None:
        settings = config.alignment
        self._names = schedule.held_out(settings.held_out_prompts)
        self._seeds = schedule.seeds(_HELD_OUT, len(self._names), settings.held_out_samples)
        shares = split_evenly(len(self._names), config.cluster.rollout.workers)
        self._waiting = deque([self._ticket(n, 1) for n in share] for share in shares if share)
        self._tries = config.asynchrony.tries
        self._finished: dict[int, Finished] = {}
        self._failed: dict[int, Failed] = {}

    def _ticket(self, number: int, attempt: int) -> Ticket:
        return Ticket(number, attempt, self._names[number], self._seeds[number])

    @property
    def done(self) -> bool:
        """Whether no group is waiting or in flight."""
        return len(self._finished) + len(self._failed) == len(self._names)

    def next_call(self) -> list[Ticket]:
        """A worker's share, or one group for another attempt."""
        return self._waiting.popleft() if self._waiting else []

    def finish(self, ticket: Ticket, finished: Finished) -> None:
        """Keep the group until the evaluation ends."""
        self._finished[ticket.number] = finished

    def fail(self, ticket: Ticket, failed: Failed) -> None:
        """Try the group again alone, as often as a training group."""
        if ticket.attempt < self._tries:
            self._waiting.append([self._ticket(ticket.number, ticket.attempt + 1)])
        else:
            self._failed[ticket.number] = failed

    @property
    def groups(self) -> list[Finished]:
        """The scored groups, in order."""
        return [finished for _, finished in sorted(self._finished.items())]

    def scalars(self) -> dict[str, float]:
        """Rewards and failures, by the names of their curves.

        Raises:
            UserError: nothing could be scored.
        """
        if not self._finished:
            reason = next(iter(self._failed.values())).reason
            raise UserError(f"no held-out rollout could be scored; first reason: {reason}", where="alignment")
        records = [finished.record for finished in self.groups]
        values = {**reward_scalars(records), "failed_groups": float(len(self._failed))}
        return {f"held_out/{name}": value for name, value in values.items()}
