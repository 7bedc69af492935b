"""Which groups come next, and that none is lost or trained twice, whatever happens on the way. No Ray, no tensors."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.config import JobConfig, RolloutConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.pipelines.align.groups import Finished, HeldOutGroups, TrainingGroups, split_evenly
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule

FAILED = Failed("gone", "worker_lost")


def make_config(updates=6, batch=8, workers=3, **asynchrony) -> JobConfig:
    return JobConfig.model_validate(
        {
            "alignment": {
                "updates": updates,
                "prompts_per_update": batch,
                "group_size": 2,
                "minibatch_prompts": batch,
                "held_out_prompts": 5,
            },
            "asynchrony": asynchrony,
            "cluster": {"rollout": {"workers": workers}},
        }
    )


def make_schedule(episodes=50) -> PromptSchedule:
    return PromptSchedule([(f"e{n}", 9) for n in range(episodes)], [(f"h{n}", 9) for n in range(4)], 0)


def finished(ticket, *versions) -> Finished:
    scores = tuple(Scored(float(seed % 97)) for seed in ticket.seeds)
    record = GroupRecord(ticket.name.prompt_id, ticket.seeds, versions, scores, 10, 0.1)
    return Finished(ticket.number, record)


def all_calls(source) -> list[list[int]]:
    calls = []
    while tickets := source.next_call():
        calls.append([ticket.number for ticket in tickets])
    return calls


@given(items=st.integers(1, 40), workers=st.integers(1, 12))
def test_shares_are_contiguous_whole_and_even(items, workers):
    shares = split_evenly(items, workers)
    assert [n for share in shares for n in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_groups_of_an_update_are_those_of_the_schedule():
    groups, schedule = TrainingGroups(make_config(), make_schedule()), make_schedule()
    tickets = []
    while call := groups.next_call():
        tickets += call
    assert [ticket.name for ticket in tickets] == schedule.train(0, 8)
    assert [ticket.seeds for ticket in tickets] == schedule.seeds(0, 8, 2)
    assert groups.begin_update() is None
    for ticket in reversed(tickets):  # whatever came first
        groups.finish(ticket, finished(ticket, 0))
    assert [done.reference for done in groups.begin_update()] == list(range(8))
    assert [number for number, _ in groups.commit_update()] == list(range(8))
    call = groups.next_call()
    assert [ticket.name for ticket in call] == schedule.train(1, 8)[: len(call)]
    assert [ticket.seeds for ticket in call] == schedule.seeds(1, 8, 2)[: len(call)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, [[0, 1], [2, 3, 4], [5, 6, 7]]),
        (3, [[0, 1], [2, 3, 4], [5, 6, 7]]),
        (4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (1, [[n] for n in range(8)]),
        (99, [list(range(8))]),
    ],
)
def test_calls_are_even_shares_of_an_update(size, expected):
    assert all_calls(TrainingGroups(make_config(groups_per_call=size), make_schedule())) == expected


def test_more_versions_may_be_under_way_but_nothing_after_the_last_update():
    groups = TrainingGroups(make_config(updates=2, staleness=3), make_schedule())
    assert all_calls(groups) == [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9], [10, 11, 12], [13, 14, 15]]


def test_a_group_that_failed_in_company_is_tried_alone_and_its_companions_do_not_pay():
    groups = TrainingGroups(make_config(batch=4, workers=1, tries=3), make_schedule())
    poison = groups.next_call()
    for ticket in poison:
        groups.fail(ticket, FAILED)
    attempts = []
    while groups.begin_update() is None:
        [ticket] = groups.next_call()
        attempts.append((ticket.number, ticket.attempt))
        if ticket.number == 2:
            groups.fail(ticket, FAILED)
        else:
            groups.finish(ticket, finished(ticket, 0))
    assert attempts == [(0, 2), (1, 2), (2, 2), (2, 3), (3, 2), (4, 1)]
    assert groups.ledger.set_aside == {poison[2].name.prompt_id}
    assert [number for number, _ in groups.commit_update()] == [0, 1, 3, 4]
    assert len(groups.failures) == 6


def test_a_group_without_a_single_score_has_failed():
    groups = TrainingGroups(make_config(), make_schedule())
    [ticket, *_] = groups.next_call()
    record = GroupRecord(ticket.name.prompt_id, ticket.seeds, (0,), (FAILED, FAILED), 10, 0.1)
    groups.finish(ticket, Finished(None, record))
    assert groups.failures == [(ticket, FAILED)]
    assert groups.ledger.waiting == (0,)


def test_a_job_that_can_score_nothing_ends_and_says_why():
    groups = TrainingGroups(make_config(tries=2), make_schedule())

    def fail_all():
        while tickets := groups.next_call():
            for ticket in tickets:
                groups.fail(ticket, FAILED)

    with pytest.raises(UserError, match="no rollout could be scored; the last reason: gone"):
        fail_all()


def test_flat_groups_are_made_again_where_asked_for():
    groups = TrainingGroups(make_config(batch=2, workers=1, flat_groups="resample"), make_schedule())
    flat, good = groups.next_call()
    same = GroupRecord(flat.name.prompt_id, flat.seeds, (0,), (Scored(1.0), Scored(1.0)), 10, 0.1)
    groups.finish(flat, Finished("flat", same))
    groups.finish(good, finished(good, 0))
    [another] = groups.next_call()
    groups.finish(another, finished(another, 0))
    assert [done.reference for done in groups.begin_update()] == [1, 2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    staleness=st.integers(0, 3),
    size=st.integers(0, 5),
    overtaking=st.booleans(),
)
def test_nothing_is_lost_or_trained_twice_whatever_happens(seed, staleness, size, overtaking):
    """Random order, failures, restarts from a checkpoint; at the end every update trained its groups, in time."""
    events, config = (
        random.Random(seed),
        make_config(staleness=staleness, groups_per_call=size, overtaking=overtaking, tries=4),
    )
    groups, under_way, trained, store = TrainingGroups(config, make_schedule()), [], [], {}
    saved = json.dumps(groups.state_dict(lambda done: done.reference))
    kept = 0  # entries of `trained` at the checkpoint
    while groups.ledger.version < config.alignment.updates:
        while tickets := groups.next_call():
            under_way += [(ticket, groups.ledger.version) for ticket in tickets]
        if under_way:
            ticket, version = under_way.pop(events.randrange(len(under_way)))
            if events.random() < 0.15:
                groups.fail(ticket, FAILED)
            else:
                done = finished(ticket, version, groups.ledger.version)
                store[ticket.number] = done
                groups.finish(ticket, done)
        if groups.begin_update() is not None:
            version = groups.ledger.version
            trained.append((version, groups.commit_update()))
            if events.random() < 0.3:
                saved, kept = json.dumps(groups.state_dict(lambda done: done.reference)), len(trained)
        if events.random() < 0.01:
            groups, under_way = TrainingGroups(config, make_schedule()), []
            groups.load_state_dict(json.loads(saved), store.__getitem__)
            del trained[kept:]
    numbers = [number for _, batch in trained for number, _ in batch]
    assert len(numbers) == len(set(numbers)) == 6 * 8
    for version, batch in trained:
        assert len(batch) == 8
        assert all(version - min(finished.record.versions) <= staleness for _, finished in batch)
    assert groups.ledger.running == groups.ledger.ready == 0
    done = groups.ledger.account()
    assert done["started"] == done["trained"] + done["set_aside"] + done["dropped"] + done["waiting"]


def test_held_out_groups_are_tried_again_and_then_counted():
    evaluation = HeldOutGroups(make_config(workers=2), make_schedule())
    first, second = evaluation.next_call(), evaluation.next_call()
    assert [len(first), len(second)] == [2, 3]
    assert evaluation.next_call() == []
    for ticket in first:
        evaluation.finish(ticket, finished(ticket, 0))
    evaluation.fail(second[0], FAILED)
    for ticket in second[1:]:
        evaluation.finish(ticket, finished(ticket, 0))
    while not evaluation.done:
        [again] = evaluation.next_call()
        assert again.seeds == second[0].seeds
        evaluation.fail(again, FAILED)
    scalars = evaluation.scalars()
    assert scalars["held_out/failed_groups"] == 1
    assert scalars["held_out/samples"] == 4 * make_config().alignment.held_out_samples


def test_groups_of_one_call_are_one_batch_where_their_horizons_are_the_same():
    rollout = RolloutConfig(horizon=3, horizons={"shape": "uniform", "least": 1})
    schedule = PromptSchedule([(f"e{n}", 9) for n in range(50)], [("h", 9)], 0, rollout)
    groups = TrainingGroups(make_config(batch=8, workers=1), schedule)
    call = groups.next_call()
    for ticket in call:
        groups.finish(ticket, finished(ticket, 0))
    assert len(call) == len(groups.begin_update()) == 8
    horizons = {ticket.number: ticket.name.horizon for ticket in call}
    for number, done in groups.commit_update():
        alike = tuple(n for n, horizon in horizons.items() if horizon == horizons[number])
        assert done.record.together == alike
