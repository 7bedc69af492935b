"""Ledger and buffer under 100,000 random events, beside an account kept on its own: nothing lost, twice or too old."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from roboalign_ray.scheduling.experience_buffer import ExperienceBuffer
from roboalign_ray.scheduling.staleness_ledger import Outcome, StalenessLedger

SHAPES = [
    {"batch": batch, "staleness": eta, "stale": stale, "overtaking": overtaking, "concurrency": concurrency}
    for batch, eta, concurrency in [(1, 0, None), (3, 1, 5), (4, 2, None), (2, 3, 40), (5, 0, 4)]
    for stale, overtaking in [("wait", False), ("wait", True), ("drop", False)]
]


class World:
    """A run seen from outside: who works on what, with which weights, and an account of its own.

    It knows of ledger and buffer only what they answer. `fates` holds every group ever started.
    """

    def __init__(self, shape: dict, seed: int, tries: int = 3) -> None:
        self.shape, self.tries, self.random = shape, tries, random.Random(seed)
        self.ledger = StalenessLedger(**shape, tries=tries)
        self.buffer = ExperienceBuffer("resample", resample_limit=2)
        self.fates: dict[int, str] = {}
        self.work: dict[
            tuple[int, int], list[int]
        ] = {}  # (group, attempt) -> versions of its segments so far
        self.sent: list[tuple[int, int, list[int]]] = []  # replies that have been given, to be repeated
        self.lost: list[tuple[int, int, list[int]]] = []  # attempts given up whose replies may still come
        self.oldest: dict[int, int] = {}
        self.version, self.events = 0, 0
        self.update: list[int] | None = None

    def start(self) -> None:
        for old in {self.version, max(0, self.version - self.random.choice([0, 0, 0, 1, 2]))}:
            if self.ledger.capacity(old):
                waiting = self.ledger.waiting
                group = waiting[0] if waiting else self.ledger.position
                assert self.fates.get(group, "waiting") == "waiting"
                attempt = self.ledger.start(group, f"prompt {group % 7000}", old)
                self.fates[group] = "running"
                self.work[group, attempt] = [old]
                return
        with pytest.raises(ValueError):
            self.ledger.start(self.ledger.position)

    def segment(self) -> None:
        """A rollout takes the newest weights on its way."""
        if self.work:
            self.work[self.random.choice(list(self.work))].append(self.version)

    def finish(self) -> None:
        if not self.work:
            return
        group, attempt = self.random.choice(list(self.work))
        versions = self.work.pop((group, attempt))
        outcome = self.ledger.finish(group, attempt, versions)
        self.sent.append((group, attempt, versions))
        too_old = self.version - min(versions) > self.shape["staleness"]
        assert outcome is (Outcome.TOO_OLD if too_old else Outcome.ACCEPTED)
        assert not too_old or self.shape["stale"] == "drop"
        if too_old:
            self.fates[group] = "dropped"
            return
        rewards = [0.5, 0.5, 0.5] if self.random.random() < 0.1 else [0.1, 0.9, float("nan")]
        if self.buffer.add(group, f"reference {group}", rewards):
            self.fates[group], self.oldest[group] = "ready", min(versions)
        else:
            self.ledger.drop(group, "flat")
            self.fates[group] = "dropped"

    def repeat(self) -> None:
        if self.sent:
            group, attempt, versions = self.random.choice(self.sent[-50:])
            outcome = self.ledger.finish(group, attempt, versions)
            again = self.fates[group] in (
                "running",
                "waiting",
            )  # lost after it had been answered, and made anew
            assert outcome is (Outcome.LATE if again else Outcome.DUPLICATE)

    def late(self) -> None:
        if self.lost:
            group, attempt, versions = self.random.choice(self.lost[-3:])
            answers = [self.ledger.finish(group, attempt, versions), self.ledger.fail(group, attempt)]
            assert set(answers) <= {Outcome.LATE, Outcome.DUPLICATE}

    def crash(self) -> None:
        if not self.work:
            return
        group, attempt = self.random.choice(list(self.work))
        self.lost.append((group, attempt, self.work.pop((group, attempt))))
        outcome = self.ledger.fail(group, attempt)
        self.fates[group] = "waiting" if outcome is Outcome.RETRY else "set_aside"
        assert outcome in (Outcome.RETRY, Outcome.SET_ASIDE)

    def drop(self) -> None:
        ready = [group for group, fate in self.fates_of("ready")]
        if ready:
            group = self.random.choice(ready)
            self.buffer.remove([group])
            if self.random.random() < 0.5:
                self.ledger.drop(group, "asked")
                self.fates[group] = "dropped"
            else:  # the node that held it is gone
                self.ledger.lose(group)
                self.fates[group] = "waiting"

    def fates_of(self, *names: str) -> list[tuple[int, str]]:
        return [(number, self.fates[number]) for number, _, _ in self.ledger.prompts()
                if self.fates[number] in names]  # fmt: skip

    def begin(self) -> None:
        if self.update is not None:
            return
        ready = self.ledger.ready
        batch = self.ledger.begin_update()
        if batch is None:
            # Whoever has nothing to wait for must not wait.
            assert ready < self.shape["batch"] or self.ledger.running or self.ledger.waiting
            return
        held = self.buffer.take(batch)
        assert [h.reference for h in held] == [f"reference {group}" for group in batch]
        assert len(batch) == self.shape["batch"]
        assert all(self.fates[group] == "ready" for group in batch)
        assert all(0 <= self.version - self.oldest[group] <= self.shape["staleness"] for group in batch)
        assert list(batch) == sorted(batch, key=lambda group: (self.oldest[group], group))
        for group in batch:
            self.fates[group] = "training"
        self.update = list(batch)

    def end(self) -> None:
        if self.update is None:
            return
        if self.random.random() < 0.2:
            self.ledger.abort_update()
            self.buffer.rollback()
            fate = "ready"
        else:
            self.buffer.remove(self.ledger.commit_update())
            self.buffer.commit()
            self.version += 1
            fate = "trained"
            for group, oldest in self.oldest.items():
                if self.fates[group] == "ready" and self.version - oldest > self.shape["staleness"]:
                    assert self.shape["stale"] == "drop"
                    self.fates[group] = "dropped"
        for group in self.update:
            self.fates[group] = fate
        self.update = None
        self.oldest = {g: v for g, v in self.oldest.items() if self.fates[g] in ("ready", "training")}

    def restart(self) -> None:
        """The driver is killed and resumes from a checkpoint of this very moment."""
        states = json.loads(json.dumps([self.ledger.state_dict(), self.buffer.state_dict()]))
        ledger = StalenessLedger(**self.shape, tries=self.tries)
        buffer = ExperienceBuffer("resample", resample_limit=2)
        ledger.load_state_dict(states[0])
        buffer.load_state_dict(states[1])
        assert json.dumps(ledger.state_dict()) == json.dumps(states[0])
        assert json.dumps(buffer.state_dict()) == json.dumps(states[1])
        self.ledger, self.buffer = ledger, buffer
        gone = ledger.recover()
        buffer.rollback()
        assert sorted(gone) == sorted(group for group, _ in self.work)
        self.lost += [(group, attempt, versions) for (group, attempt), versions in self.work.items()]
        for group in gone:
            self.fates[group] = "waiting"
        for group in self.update or []:
            self.fates[group] = "ready"
        self.work, self.update = {}, None

    def check(self) -> None:
        """Cheap enough for every event."""
        ledger = self.ledger
        assert ledger.running == len(self.work)
        assert ledger.version == self.version
        assert ledger.ready == len(self.buffer)
        account = ledger.account()
        assert sum(account.values()) == 2 * account["started"]
        assert account["trained"] == self.version * self.shape["batch"]
        limit = self.shape["concurrency"]
        published = (self.shape["staleness"] + self.version + 1) * self.shape["batch"]
        published -= ledger.accepted + ledger.running
        assert ledger.capacity() == max(
            0, published if limit is None else min(published, limit - ledger.running)
        )

    def check_all(self) -> None:
        """The whole account against the one kept here."""
        mine = Counter(self.fates.values())
        account = self.ledger.account()
        assert {name: mine[name] for name in account if name != "started"} == {
            name: number for name, number in account.items() if name != "started"
        }
        assert account["started"] == len(self.fates)
        for number, _, state in self.ledger.prompts():
            assert self.fates[number] == state.value
        assert set(self.ledger.staleness_of_groups) <= set(range(self.shape["staleness"] + 1))
        assert sum(self.ledger.staleness_of_groups.values()) == mine["trained"]

    def drain(self) -> None:
        """No more failures: all that was begun ends, and every permit comes back."""
        for _ in range(100_000):
            if not self.ledger.waiting and not self.work and self.update is None:
                break
            if self.ledger.waiting and self.ledger.capacity():
                self.start()
            self.finish()
            if self.update is not None:
                self.end()
            else:
                self.begin()
            if self.ledger.waiting and not self.work and self.update is None and not self.ledger.capacity():
                pytest.fail("groups wait, nothing runs, and nothing may start")
        assert self.ledger.running == 0
        assert not self.ledger.waiting


WEIGHTS = {
    "start": 30,
    "segment": 10,
    "finish": 28,
    "repeat": 4,
    "late": 4,
    "crash": 6,
    "drop": 1,
    "begin": 12,
    "end": 10,
    "restart": 0.3,
}


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_a_long_run_of_random_events(index: int) -> None:
    """15 runs of 8,000 events."""
    world = World(SHAPES[index], seed=index)
    names = random.Random(index).choices(list(WEIGHTS), list(WEIGHTS.values()), k=8000)
    for number, name in enumerate(names):
        getattr(world, name)()
        world.check()
        if number % 500 == 0:
            world.check_all()
    world.drain()
    world.check_all()
    counts = world.ledger.counts
    assert world.version > 50
    assert all(counts[name] for name in ("failed", "lost", "duplicate", "aborted", "dropped"))


class LedgerMachine(RuleBasedStateMachine):
    """The same world, with hypothesis looking for the shortest run that breaks it."""

    @initialize(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**20))
    def begin_world(self, shape, seed):
        self.world = World(shape, seed, tries=2)

    @rule(name=st.sampled_from(list(WEIGHTS)))
    def one(self, name):
        getattr(self.world, name)()

    @rule(name=st.sampled_from(["start", "finish", "begin"]), times=st.integers(1, 8))
    def many(self, name, times):
        for _ in range(times):
            getattr(self.world, name)()

    @invariant()
    def holds(self):
        if hasattr(self, "world"):
            self.world.check()
            self.world.check_all()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()
            self.world.check_all()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
