"""The staleness ledger: decides which groups may start and be trained together, and tracks the state of each group.

    new ──start──► running ──finish──► ready ──begin──► training ──commit──► trained
                    │  ▲ fail            │ too old          │ abort
                    ▼  │ start           ▼                  ▼
                  waiting              dropped            ready            too many failures: set aside

A group is the G rollouts of one prompt; its number is its place in the prompt schedule (0, 1, 2, …). Its version w is
that of its oldest segment. With eta the bound, B groups per update and V completed updates, a group that starts may be
trained in update w + eta at the latest, and update V trains exactly B groups. So all can be trained in time if and only
if,

    for every update d >= V:   #{groups in flight with w + eta <= d} <= (d - V + 1) B.

For a start with the newest weights (w = V), this is the published capacity (arXiv 2505.24298, eq. 3):

    capacity = min(concurrency - running, (eta + V + 1) B - (accepted + running)),    accepted = V B + ready.

The ledger starts no group that would violate the condition, and begins no update that would leave it violated. With
"wait", the bound holds for every group, and no group is discarded for its age. With "drop", updates do not wait for
slow groups; groups that arrive too old are discarded and counted. With eta = 0, an update's groups are exactly those
started since the last update: the synchronous run.

No clock, no thread, no I/O. Replies name group and attempt, so that late and repeated replies are recognised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.scheduling.deadlines import Lanes

_FORMAT = 1


class State(StrEnum):
    """State of a group that is not complete."""

    WAITING = "waiting"
    RUNNING = "running"
    READY = "ready"
    TRAINING = "training"


class Outcome(StrEnum):
    """Result of a reply or a failure.

    ACCEPTED: ready to be trained on. DUPLICATE: the group was already answered. LATE: the attempt was given up before.
    TOO_OLD: discarded. RETRY: waits to be started again. SET_ASIDE: its prompt failed too often.
    """

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    LATE = "late"
    TOO_OLD = "too_old"
    RETRY = "retry"
    SET_ASIDE = "set_aside"


@dataclass
class _Group:
    prompt: str
    attempt: int
    state: State
    version: int
    versions: tuple[int, ...] = ()


class StalenessLedger:
    """States and counts of all groups of a run.

    Args:
        batch: B, groups per update.
        staleness: eta, in versions.
        stale: "wait" or "drop".
        overtaking: with "wait", whether ready groups may be trained before older groups that still run, as far as the
            bound allows; with "drop", they always may.
        concurrency: maximum of running groups; None sets no limit besides the bound. May be changed at any time.
        tries: failures in a row after which a prompt is set aside.
        version: initial V.

    Attributes:
        version: V, the number of completed updates.
        position: the next group that has never been started.
        counts: number of events by name.
        staleness_of_groups, staleness_of_segments: number of trained groups and segments by age in versions.
        set_aside: prompts that failed too often.
    """

    def __init__(
        self,
        batch: int,
        staleness: int = 0,
        *,
        stale: Literal["wait", "drop"] = "wait",
        overtaking: bool = False,
        concurrency: int | None = None,
        tries: int = 3,
        version: int = 0,
    ) -> None:
        if batch < 1 or staleness < 0 or tries < 1 or version < 0:
            raise ValueError(f"batch {batch}, staleness {staleness}, tries {tries}, version {version}")
        self.batch, self.staleness, self.stale, self.tries = batch, staleness, stale, tries
        self.overtaking, self.concurrency = overtaking, concurrency
        self.version, self.position = version, 0
        self.counts: Counter[str] = Counter()
        self.staleness_of_groups: Counter[int] = Counter()
        self.staleness_of_segments: Counter[int] = Counter()
        self.set_aside: set[str] = set()
        self._failures: Counter[str] = Counter()  # number in a row, by prompt
        self._groups: dict[int, _Group] = {}
        self._lanes = Lanes(batch, staleness)
        self._waiting: set[int] = set()
        self._training: tuple[int, ...] = ()

    # --- queries -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Number of running groups."""
        return self._lanes.running

    @property
    def ready(self) -> int:
        """Number of finished groups that are not in an update."""
        return self._lanes.ready

    @property
    def accepted(self) -> int:
        """Groups finished since version 0: V B trained ones, those in training, and ready ones."""
        return self.version * self.batch + len(self._training) + self.ready

    @property
    def training(self) -> tuple[int, ...]:
        """Groups of the open update; empty between updates."""
        return self._training

    @property
    def waiting(self) -> tuple[int, ...]:
        """Groups that must be started again before any new one, in this order."""
        return tuple(sorted(self._waiting))

    def capacity(self, version: int | None = None) -> int:
        """Number of groups that may start now.

        Args:
            version: version of the weights that they would start with; None takes the newest, V.
        """
        version = self.version if version is None else version
        if version > self.version:
            raise ValueError(f"version {version} does not exist yet, the newest is {self.version}")
        free = self._lanes.room(version, self.version, len(self._training))
        if self.concurrency is not None:
            free = min(free, self.concurrency - self.running)
        return max(0, free)

    def prompts(self) -> Iterator[tuple[int, str, State]]:
        """Every group that is not complete: number, prompt and state, in the order of numbers."""
        for number in sorted(self._groups):
            yield number, self._groups[number].prompt, self._groups[number].state

    def attempt(self, group: int) -> int:
        """The current attempt; KeyError for a complete group."""
        return self._groups[group].attempt

    def account(self) -> dict[str, int]:
        """Number of groups ever started, and number per state; the latter add up to "started"."""
        states = Counter(group.state for group in self._groups.values())
        return {
            "started": self.counts["started"],
            **{state.value: states[state] for state in State},
            **{name: self.counts[name] for name in ("trained", "dropped", "set_aside")},
        }

    # --- events --------------------------------------------------------------------------------------------------

    def start(self, group: int, prompt: str = "", version: int | None = None) -> int:
        """Start a group. Return the number of the attempt.

        Args:
            group: one of `waiting` if there are any, else a number from `position` on.
            prompt: name of its prompt, for counting failures; by default the group's number. Kept when started again.
            version: version of the weights that it starts with; None takes the newest.

        Raises:
            ValueError: there is no capacity, waiting groups come first, or the group is not new.
        """
        version = self.version if version is None else version
        if self.capacity(version) < 1:
            raise ValueError(f"no capacity for group {group} at version {version}")
        known = self._groups.get(group)
        if known is None:
            if group < self.position:
                raise ValueError(
                    f"group {group} has been started before; the next new one is {self.position}"
                )
            if self._waiting:
                raise ValueError(f"group {min(self._waiting)} waits to be started before any new one")
            if prompt in self.set_aside:
                raise ValueError(f"prompt '{prompt}' is set aside")
            known = self._groups[group] = _Group(prompt or f"#{group}", 0, State.WAITING, version)
            self.position = group + 1
            self.counts["started"] += 1
        elif known.state is not State.WAITING:
            raise ValueError(f"group {group} is {known.state.value}")
        self._waiting.discard(group)
        known.attempt += 1
        self._enter(group, known, State.RUNNING, version)
        return known.attempt

    def finish(self, group: int, attempt: int, versions: Sequence[int]) -> Outcome:
        """Record a finished, scored group.

        Args:
            versions: versions of its segments; the oldest counts.

        Returns:
            ACCEPTED, DUPLICATE, LATE, or TOO_OLD: with "drop" if the bound has passed, with "wait" if a worker used
                older weights than it was started with.

        Raises:
            ValueError: a version does not exist, or the group was never started.
        """
        if not versions or min(versions) < 0 or max(versions) > self.version:
            raise ValueError(f"group {group} names versions {list(versions)}, the newest is {self.version}")
        if (stray := self._stray(group, attempt)) is not None:
            return stray
        known, oldest = self._groups[group], min(versions)
        promised = known.version
        self._failures.pop(known.prompt, None)
        self._leave(group, known)
        if self.version - oldest > self.staleness or (self.stale == "wait" and oldest < promised):
            self._discard(group, "too_old")
            return Outcome.TOO_OLD
        known.versions = tuple(versions)
        self._enter(group, known, State.READY, oldest)
        self.counts["accepted"] += 1
        return Outcome.ACCEPTED

    def fail(self, group: int, attempt: int) -> Outcome:
        """Record a failed attempt: its worker was lost, or the rollout or the score failed.

        Returns:
            RETRY, SET_ASIDE, DUPLICATE or LATE.
        """
        if (stray := self._stray(group, attempt)) is not None:
            return stray
        known = self._groups[group]
        self._leave(group, known)
        self.counts["failed"] += 1
        self._failures[known.prompt] += 1
        if self._failures[known.prompt] >= self.tries:
            del self._failures[known.prompt], self._groups[group]
            self.set_aside.add(known.prompt)
            self.counts["set_aside"] += 1
            return Outcome.SET_ASIDE
        self._wait(group, known)
        return Outcome.RETRY

    def lose(self, group: int) -> None:
        """A running or ready group was lost with its node: it must be started again, without a failure of its prompt.

        Raises:
            ValueError: the group is neither.
        """
        known = self._live(group)
        self._leave(group, known)
        self.counts["lost"] += 1
        self._wait(group, known)

    def drop(self, group: int, reason: str) -> None:
        """Discard a running or ready group permanently, and count it under `reason`.

        Raises:
            ValueError: the group is neither.
        """
        self._leave(group, self._live(group))
        self._discard(group, reason)

    def begin_update(self) -> tuple[int, ...] | None:
        """The groups of the next update, oldest version first, then by number; None if it has to wait.

        Raises:
            ValueError: the last update was neither committed nor aborted.
        """
        if self._training:
            raise ValueError("an update is under way")
        if self.ready < self.batch:
            return None
        if self.overtaking or self.stale == "drop":
            batch = self._lanes.oldest_ready(self.version, in_time=self.stale == "wait")
        else:
            batch = self._lanes.oldest()
        if batch is None:
            return None
        for group in batch:
            self._leave(group, self._groups[group])
            self._groups[group].state = State.TRAINING
        self._training = tuple(batch)
        return self._training

    def commit_update(self) -> tuple[int, ...]:
        """Complete the update; version V + 1 exists. Return ready groups that are now too old ("drop")."""
        if not self._training:
            raise ValueError("no update is under way")
        for group in self._training:
            known = self._groups.pop(group)
            self.staleness_of_groups[self.version - known.version] += 1
            self.staleness_of_segments.update(self.version - w for w in known.versions)
        self.counts["trained"] += len(self._training)
        self._training = ()
        self.version += 1
        expired = tuple(self._lanes.ready_before(self.version - self.staleness))
        for group in expired:
            self._leave(group, self._groups[group])
            self._discard(group, "too_old")
        return expired

    def abort_update(self) -> None:
        """Undo the update: its groups are ready again."""
        if not self._training:
            raise ValueError("no update is under way")
        batch, self._training = self._training, ()
        for group in batch:
            self._enter(group, self._groups[group], State.READY, self._groups[group].version)
        self.counts["aborted"] += 1

    def recover(self) -> tuple[int, ...]:
        """After a restart: undo an open update, and queue running groups to be started again. Return these groups."""
        if self._training:
            self.abort_update()
        gone = tuple(g for g, known in sorted(self._groups.items()) if known.state is State.RUNNING)
        for group in gone:
            self.lose(group)
        return gone

    # --- internal ------------------------------------------------------------------------------------------------

    def _stray(self, group: int, attempt: int) -> Outcome | None:
        """The `Outcome` of a reply that is not expected."""
        if group >= self.position:
            raise ValueError(f"group {group} was never started")
        known = self._groups.get(group)
        if known is not None and known.state is State.RUNNING and known.attempt == attempt:
            return None
        late = known is not None and (known.state in (State.WAITING, State.RUNNING))
        outcome = Outcome.LATE if late else Outcome.DUPLICATE
        self.counts[outcome.value] += 1
        return outcome

    def _live(self, group: int) -> _Group:
        known = self._groups.get(group)
        if known is None or known.state not in (State.RUNNING, State.READY):
            raise ValueError(f"group {group} is {known.state.value if known else 'done with'}")
        return known

    def _enter(self, group: int, known: _Group, state: State, version: int) -> None:
        known.state, known.version = state, version
        self._lanes.enter(group, version, ready=state is State.READY)

    def _leave(self, group: int, known: _Group) -> None:
        self._lanes.leave(group, known.version, ready=known.state is State.READY)

    def _wait(self, group: int, known: _Group) -> None:
        known.state, known.versions = State.WAITING, ()
        self._waiting.add(group)

    def _discard(self, group: int, reason: str) -> None:
        del self._groups[group]
        self.counts["dropped"] += 1
        self.counts[f"dropped_{reason}"] += 1

    # --- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The complete state without the settings, JSON types."""
        return {
            "format": _FORMAT,
            "batch": self.batch,
            "staleness": self.staleness,
            "version": self.version,
            "position": self.position,
            "counts": dict(self.counts),
            "staleness_of_groups": sorted(self.staleness_of_groups.items()),
            "staleness_of_segments": sorted(self.staleness_of_segments.items()),
            "set_aside": sorted(self.set_aside),
            "failures": dict(self._failures),
            "training": list(self._training),
            "groups": [
                [number, g.prompt, g.attempt, g.state.value, g.version, list(g.versions)]
                for number, g in sorted(self._groups.items())
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`. Call `recover` afterwards if the workers are lost.

        Raises:
            UserError: the state has another batch size or bound, so its groups may be too old.
        """
        for name in ("format", "batch", "staleness"):
            mine = _FORMAT if name == "format" else getattr(self, name)
            if state[name] != mine:
                raise UserError(
                    f"the ledger was written with {name} {state[name]}, this run has {mine}",
                    where="asynchrony",
                    remedy="resume with the settings that the run began with",
                )
        self.version, self.position = int(state["version"]), int(state["position"])
        self.counts = Counter(state["counts"])
        self.staleness_of_groups = Counter({int(k): int(v) for k, v in state["staleness_of_groups"]})
        self.staleness_of_segments = Counter({int(k): int(v) for k, v in state["staleness_of_segments"]})
        self.set_aside, self._failures = set(state["set_aside"]), Counter(state["failures"])
        self._groups, self._waiting = {}, set()
        self._lanes = Lanes(self.batch, self.staleness)
        self._training = tuple(state["training"])
        for number, prompt, attempt, name, version, versions in state["groups"]:
            known = self._groups[number] = _Group(prompt, attempt, State(name), version, tuple(versions))
            if known.state is State.WAITING:
                self._waiting.add(number)
            elif known.state is not State.TRAINING:
                self._enter(number, known, known.state, version)
