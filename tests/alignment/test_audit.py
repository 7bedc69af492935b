"""The audit of a finished run: what a real ledger leaves passes, and every way of breaking a promise is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.alignment.records.audit import RunRecord, audit
from roboalign_ray.scheduling.staleness_ledger import Outcome, StalenessLedger

BATCH, BOUND, UPDATES = 3, 1, 5


def prompt_of(number: int) -> str:
    return f"prompt {number % 11}"


def a_run(seed: int = 0, failing: float = 0.3, tries: int = 50) -> RunRecord:
    """A whole run of a ledger whose attempts sometimes fail, and the journal that goes with it."""
    chosen, ledger = random.Random(seed), StalenessLedger(BATCH, BOUND, tries=tries)
    journal, failures, versions, running = [], [], {}, {}
    while ledger.version < UPDATES:
        wanted = UPDATES * BATCH - ledger.accepted - ledger.running
        if min(ledger.capacity(), wanted) > 0:
            number = ledger.waiting[0] if ledger.waiting else ledger.position
            while not ledger.waiting and prompt_of(number) in ledger.set_aside:
                number += 1
            running[number] = ledger.start(number, prompt_of(number))
            versions[number] = ledger.version
        if running and chosen.random() < 0.7:
            number = chosen.choice(sorted(running))
            attempt = running.pop(number)
            if chosen.random() < failing:
                assert ledger.fail(number, attempt) in (Outcome.RETRY, Outcome.SET_ASIDE)
                failures.append({"group": number, "prompt": prompt_of(number), "failed": "lost", "kind": "x"})
            else:
                ledger.finish(number, attempt, [versions[number], ledger.version])
        if (batch := ledger.begin_update()) is not None:
            for number in batch:
                scores = [{"total": 1.0}]
                line = {"group": number, "prompt": prompt_of(number), "scores": scores}
                journal.append(
                    line | {"update": ledger.version, "versions": [versions[number], ledger.version]}
                )
            journal += [failure | {"update": ledger.version} for failure in failures]
            failures = []
            ledger.commit_update()
    return RunRecord(journal, ledger.state_dict(), prompt_of, UPDATES)


def broken(record: RunRecord) -> set[str]:
    return {finding.promise for finding in audit(record) if not finding.holds}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 0.6]))
def test_a_run_that_keeps_its_promises_passes(seed, failing):
    record = a_run(seed, failing)
    assert broken(record) == set()
    assert record.lost == record.twice == ()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_groups_of_prompts_set_aside_are_answered_for(seed):
    record = a_run(seed, failing=0.25, tries=2)
    assert broken(record) == set()


def changed(record: RunRecord, journal=None, updates=UPDATES, **ledger) -> RunRecord:
    return RunRecord(
        record.journal if journal is None else journal, record.ledger | ledger, prompt_of, updates
    )


def test_a_lost_group_is_found_and_named():
    record = a_run()
    gone = next(line for line in record.journal if "scores" in line)
    found = changed(record, [line for line in record.journal if line is not gone])
    assert found.lost == (gone["group"],)
    assert broken(found) == {"no group is lost", "every update trains one whole batch"}


def test_a_dropped_group_is_not_a_lost_one():
    record = a_run()
    counts = record.ledger["counts"] | {"dropped": 1, "started": record.ledger["counts"]["started"] + 1}
    found = changed(record, counts=counts, position=record.ledger["position"] + 1)
    assert broken(found) == set()
    assert changed(record, position=record.ledger["position"] + 1).lost == (record.ledger["position"],)


def test_a_group_trained_twice_is_found_and_named():
    record = a_run()
    again = next(line for line in record.journal if "scores" in line)
    other = next(line for line in record.journal if line.get("update") == 3 and "scores" in line)
    twice = [again | {"update": 3, "versions": [3]} if line is other else line for line in record.journal]
    found = changed(record, twice)
    assert found.twice == (again["group"],)
    assert broken(found) == {"no group is trained twice", "no group is lost"}


@pytest.mark.parametrize("off", [-(BOUND + 1), 1], ids=["too old", "not made yet"])
def test_a_broken_bound_is_found(off):
    record = a_run()
    journal = [dict(line) for line in record.journal]
    line = next(line for line in journal if line["update"] == 3 and "scores" in line)
    line["versions"] = [3 + off]
    assert broken(changed(record, journal)) == {"the bound on staleness holds"}


def test_what_is_still_under_way_and_an_account_that_does_not_add_up_are_found():
    record = a_run()
    out = [[99, "prompt 1", 1, "running", 4, []]]
    assert broken(changed(record, groups=out)) == {"every permit is back"}
    counts = record.ledger["counts"] | {"trained": 1}
    assert broken(changed(record, counts=counts)) == {"every permit is back"}


def test_a_run_that_stopped_early_is_found():
    record = a_run()
    assert broken(changed(record, updates=UPDATES + 1)) == {
        "the run completes",
        "every update trains one whole batch",
    }


def test_a_prompt_set_aside_without_a_word_is_found():
    record = a_run(failing=0.0)
    assert broken(changed(record, set_aside=["prompt 2"])) == {"what failed has a reason"}
