"""The labelling ledger against a world in which teachers fail, items kill, and the process itself dies anywhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.judge.teacher.label_ledger import LabelLedger


class Died(Exception):
    """The process of the labelling job is gone."""


class World:
    """Items, some of which never get a label; a store that keeps labels in parts; a journal on disk."""

    def __init__(self, items: int, poison: set[int], part: int, batch: int, retries: int) -> None:
        self.items = [f"item-{n}" for n in range(items)]
        self.poison = {f"item-{n}" for n in poison}
        self.part, self.batch, self.retries = part, batch, retries
        self.kept: Counter[str] = Counter()
        self.journal: list[dict[str, Any]] = []
        self.asked: Counter[str] = Counter()

    def run(self, garbage: Any, dies_at: int) -> LabelLedger:
        """One life of the process; `garbage` says which answers cannot be read."""
        ledger = LabelLedger(self.retries, self.kept)
        ledger.replay(self.journal)
        items, waiting, calls = iter(self.items), list[str](), 0
        while True:
            again = ledger.next_again()
            batch = [again] if again else []
            while not again and len(batch) < self.batch and (item := next(items, None)):
                if ledger.wanted(item):
                    batch.append(item)
            if not batch:
                break
            for item in batch:
                ledger.begin(item)
                self.journal.append({"event": "begun", "item": item})
                self.asked[item] += 1
            calls += 1
            if calls == dies_at:
                raise Died
            lost = any(item in self.poison for item in batch)
            for item in batch:
                if lost or garbage():
                    ledger.fail(item, "garbage")
                    self.journal.append({"event": "failed", "item": item, "reason": "garbage"})
                elif ledger.succeed(item):
                    waiting.append(item)
                    self.journal.append({"event": "labelled", "item": item})
            if len(waiting) >= self.part:
                self.kept.update(waiting)
                waiting = []
        self.kept.update(waiting)
        return ledger


@given(
    st.integers(1, 25),
    st.sets(st.integers(0, 24), max_size=4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.lists(st.integers(1, 12), max_size=4),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_every_item_is_labelled_exactly_once_or_set_aside(
    items: int, poison: set[int], part: int, batch: int, retries: int, deaths: list[int], random: Any
) -> None:
    world = World(items, poison, part, batch, retries)
    ledger = None
    for dies_at in [*deaths, 0]:
        try:
            ledger = world.run(lambda: random.random() < 0.3, dies_at)
            break
        except Died:
            continue
    assert ledger is not None
    assert set(world.kept.values()) <= {1}
    assert not world.poison & set(world.kept)
    assert set(world.kept) | set(ledger.set_aside) == set(world.items)
    assert not set(world.kept) & set(ledger.set_aside)
    assert not ledger.in_flight
    labelled_again = len(deaths) * (part + batch)  # labels that a death lost before they were kept
    assert sum(world.asked.values()) <= items * (retries + 1) + labelled_again * (retries + 1)


def test_a_failed_item_comes_again_alone_and_is_set_aside_in_the_end() -> None:
    ledger = LabelLedger(retries=1)
    ledger.begin("a")
    assert ledger.fail("a", "timeout")
    assert not ledger.wanted("a")
    assert ledger.next_again() == "a"
    ledger.begin("a")
    assert not ledger.fail("a", "died")
    assert ledger.set_aside == {"a": "died"}
    assert ledger.next_again() is None
    assert ledger.failures == 2


def test_an_item_that_kills_the_process_is_not_tried_for_ever() -> None:
    journal = [{"event": "begun", "item": "a"}] * 3
    ledger = LabelLedger(retries=2)
    ledger.replay(journal)
    assert not ledger.wanted("a")
    assert "a" in ledger.set_aside


def test_a_label_that_comes_twice_is_kept_once() -> None:
    ledger = LabelLedger(retries=1, labelled=["b"])
    ledger.begin("a")
    assert ledger.succeed("a")
    assert not ledger.succeed("a")
    assert not ledger.succeed("b")
    assert not ledger.wanted("b")
