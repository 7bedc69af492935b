"""The ledger's rules one at a time."""

from __future__ import annotations

import pytest

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.scheduling.staleness_ledger import Outcome, StalenessLedger


def fill(ledger, version=None):
    """Start all that may start; their numbers."""
    first = ledger.position
    while ledger.capacity(version):
        ledger.start(ledger.position, version=version)
    return range(first, ledger.position)


def finish(ledger, *groups, versions=None):
    return [ledger.finish(group, ledger.attempt(group), versions or [ledger.version]) for group in groups]


@pytest.mark.parametrize("eta", [0, 1, 3])
def test_capacity_is_the_published_formula(eta):
    ledger = StalenessLedger(batch=4, staleness=eta)
    started = fill(ledger)
    assert len(started) == (eta + 1) * 4
    for update in range(5):
        finish(ledger, *[group for group, _, state in ledger.prompts() if state.value == "running"])
        assert ledger.begin_update() == tuple(range(update * 4, update * 4 + 4))
        assert ledger.capacity() == 0
        ledger.commit_update()
        assert ledger.capacity() == (eta + update + 2) * 4 - ledger.accepted - ledger.running == 4
        fill(ledger)
    # groups that began with the run are as old as the bound allows, and none is older
    assert max(ledger.staleness_of_groups) == eta


def test_concurrency_bounds_running_groups_only():
    ledger = StalenessLedger(batch=4, staleness=1, concurrency=3)
    assert list(fill(ledger)) == [0, 1, 2]
    finish(ledger, 1)
    assert list(fill(ledger)) == [3]
    ledger.concurrency = 1
    assert ledger.capacity() == 0
    with pytest.raises(ValueError, match="no capacity"):
        ledger.start(4)


def test_without_overtaking_an_update_waits_for_the_slowest():
    ledger = StalenessLedger(batch=2, staleness=2)
    fill(ledger)
    finish(ledger, 1, 2, 3, 4, 5)
    assert ledger.begin_update() is None
    finish(ledger, 0)
    assert ledger.begin_update() == (0, 1)


def test_with_overtaking_a_slow_group_is_waited_for_when_it_must_be():
    ledger = StalenessLedger(batch=2, staleness=2, overtaking=True)
    fill(ledger)
    for update, batch in enumerate([(1, 2), (3, 4)]):
        finish(ledger, *batch, versions=[0])
        assert ledger.begin_update() == batch
        ledger.commit_update()
        assert ledger.version == update + 1
        fill(ledger)
    finish(ledger, 5, versions=[0])
    finish(ledger, 6, 7, versions=[1])
    finish(ledger, 8, 9)
    assert ledger.begin_update() is None  # group 0 is two versions old now
    finish(ledger, 0, versions=[0, 2])
    assert ledger.begin_update() == (0, 5)
    ledger.commit_update()
    assert ledger.staleness_of_groups == {0: 2, 1: 2, 2: 2}
    assert ledger.staleness_of_segments == {0: 3, 1: 2, 2: 2}  # its second segment was fresh


def test_dropping_goes_on_and_counts():
    ledger = StalenessLedger(batch=2, staleness=1, stale="drop")
    fill(ledger)
    for _ in range(2):
        ready = [group for group, _, _ in ledger.prompts() if group][:2]
        finish(ledger, *ready)
        ledger.begin_update()
        ledger.commit_update()
        fill(ledger)
    assert finish(ledger, 0, versions=[0]) == [Outcome.TOO_OLD]
    assert ledger.counts["dropped_too_old"] == 1
    assert ledger.account()["dropped"] == 1


def test_a_ready_group_that_grew_too_old_is_given_back_for_discarding():
    ledger = StalenessLedger(batch=2, staleness=1, stale="drop")
    fill(ledger)
    finish(ledger, 0, 1)
    ledger.begin_update()
    assert ledger.commit_update() == ()
    finish(ledger, *fill(ledger))
    assert ledger.begin_update() == (4, 5)  # not waiting for groups 2 and 3
    assert finish(ledger, 2, 3, versions=[0]) == [Outcome.ACCEPTED] * 2
    assert ledger.commit_update() == (2, 3)
    assert ledger.counts["dropped_too_old"] == 2


def test_older_weights_than_promised_break_no_bound():
    ledger = StalenessLedger(batch=2, staleness=1)
    fill(ledger)
    finish(ledger, 0, 1)
    ledger.begin_update()
    ledger.commit_update()
    (new, _) = fill(ledger)
    assert finish(ledger, new, versions=[0, 1]) == [Outcome.TOO_OLD]
    with pytest.raises(ValueError, match="newest"):
        finish(ledger, new + 1, versions=[2])


def test_starting_with_weights_that_are_not_the_newest():
    ledger = StalenessLedger(batch=2, staleness=1)
    fill(ledger)
    finish(ledger, 0, 1, 2, 3)
    ledger.begin_update()
    ledger.commit_update()
    # groups 2 and 3 fill update 1, the last one that rollouts of version 0 may be trained in
    assert (ledger.capacity(0), ledger.capacity(1)) == (0, 2)


def test_poison_is_set_aside_after_failures_in_a_row():
    ledger = StalenessLedger(batch=4, tries=2)
    ledger.start(0, "good")
    ledger.start(1, "bad")
    assert ledger.fail(0, 1) is Outcome.RETRY
    assert ledger.fail(1, 1) is Outcome.RETRY
    with pytest.raises(ValueError, match="group 0 waits"):
        ledger.start(2, "new")
    ledger.start(0), ledger.start(1)
    assert finish(ledger, 0) == [Outcome.ACCEPTED]
    assert ledger.fail(1, 2) is Outcome.SET_ASIDE
    assert ledger.set_aside == {"bad"}
    with pytest.raises(ValueError, match="set aside"):
        ledger.start(2, "bad")
    ledger.start(2, "good")
    assert ledger.fail(2, 1) is Outcome.RETRY  # its success before has cleared the count


def test_every_reply_counts_once():
    ledger = StalenessLedger(batch=2)
    fill(ledger)
    ledger.fail(0, 1)
    assert ledger.finish(0, 1, [0]) is Outcome.LATE
    ledger.start(0)
    assert ledger.finish(0, 1, [0]) is Outcome.LATE
    assert ledger.finish(0, 2, [0]) is Outcome.ACCEPTED
    assert ledger.finish(0, 2, [0]) is Outcome.DUPLICATE
    finish(ledger, 1)
    ledger.begin_update()
    assert ledger.fail(0, 2) is Outcome.DUPLICATE
    with pytest.raises(ValueError, match="under way"):
        ledger.begin_update()
    ledger.commit_update()
    assert ledger.finish(0, 2, [0]) is Outcome.DUPLICATE
    with pytest.raises(ValueError, match="never started"):
        ledger.finish(7, 1, [0])
    with pytest.raises(ValueError, match="before"):
        ledger.start(1)


def test_another_bound_cannot_resume():
    state = StalenessLedger(batch=2, staleness=2).state_dict()
    with pytest.raises(UserError, match="staleness 2, this run has 1"):
        StalenessLedger(batch=2, staleness=1).load_state_dict(state)
