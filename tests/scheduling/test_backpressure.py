"""The controller within its bounds, patient, and at rest where the load says it should be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.config.asynchrony import BackpressureConfig, ElasticConfig
from roboalign_ray.scheduling.backpressure import (
    BackpressureController,
    Observation,
    PatientTarget,
    workers_for,
)


def controller(most=64, **changes):
    config = BackpressureConfig(**changes)
    return BackpressureController(config, batch=16, most=most, rollout_workers=8, scorer_workers=2)


def seen(**changes):
    calm = {
        "running": 64,
        "scorer_queue": 0,
        "ready": 0,
        "learner_busy": 1.0,
        "rollout_workers": 8,
        "scorer_workers": 2,
    }
    return Observation(**(calm | changes))


OBSERVATIONS = st.builds(
    Observation,
    running=st.integers(0, 200),
    scorer_queue=st.integers(0, 200),
    ready=st.integers(0, 200),
    learner_busy=st.floats(0, 1),
    rollout_workers=st.integers(0, 50),
    scorer_workers=st.integers(0, 50),
    rollout_seconds=st.floats(0, 100),
    scorer_seconds=st.floats(0, 100),
    learner_seconds=st.floats(0, 100),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(OBSERVATIONS, max_size=30), st.integers(0, 30))
def test_bounds_hold_and_the_state_goes_round(observations, cut):
    bounds = {"rollout": ElasticConfig(least=4, most=12), "scorer": ElasticConfig(least=1, most=3)}
    whole, first, second = controller(**bounds), controller(**bounds), controller(**bounds)
    for observation in observations[:cut]:
        whole.observe(observation), first.observe(observation)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for observation in observations[cut:]:
        targets = second.observe(observation)
        assert targets == whole.observe(observation)
        assert 8 <= targets.concurrency <= 64
        assert 4 <= targets.rollout_workers <= 12
        assert 1 <= targets.scorer_workers <= 3


def test_a_long_queue_halves_the_groups_in_flight_in_a_few_looks():
    steered = controller()
    for _ in range(4):
        steered.observe(seen(scorer_queue=10))  # two and a half times what two scorers of depth 2 hold
    assert steered.targets.concurrency == int(64 * 0.8**4)
    for _ in range(100):
        steered.observe(seen(scorer_queue=10))
    assert steered.targets.concurrency == 8


def test_nothing_moves_between_the_watermarks():
    steered = controller()
    steered.observe(seen(scorer_queue=10))
    before = steered.targets
    for queue in (2, 4, 6):
        assert steered.observe(seen(scorer_queue=queue)) == before


def test_the_bound_grows_only_where_it_binds():
    steered = controller()
    steered.observe(seen(scorer_queue=10))
    assert steered.observe(seen(running=50)).concurrency == 51
    assert steered.observe(seen(running=51)).concurrency == 52


def test_ready_groups_weigh_on_the_learner_only_while_it_works():
    steered = controller()
    assert steered.observe(seen(ready=48, learner_busy=0.0)).concurrency == 64
    assert steered.observe(seen(ready=48, learner_busy=1.0)).concurrency == 51


def test_a_scorers_backlog_counts_full_queues():
    """Four groups wait for two scorers: one full queue of depth 2, half a one of depth 4."""
    four = seen(scorer_queue=4, ready=24, learner_busy=0.5)
    assert controller(depth=2).backlogs(four) == (1.0, 0.75)
    assert controller(depth=4).backlogs(four) == (0.5, 0.75)


def test_pools_follow_the_load_of_the_learner():
    pools = {"rollout": ElasticConfig(least=1, most=100), "scorer": ElasticConfig(least=1, most=100)}
    steered = controller(most=1000, utilisation=0.8, **pools)
    load = seen(rollout_seconds=10.0, scorer_seconds=1.0, learner_seconds=4.0)  # four groups a second
    looks = [steered.observe(load) for _ in range(6)]
    assert [targets.rollout_workers for targets in looks[:3]] == [8, 8, 50]
    assert (looks[-1].rollout_workers, looks[-1].scorer_workers) == (50, 5)
    assert workers_for(4, 10, 0.8) == 50


def test_patience_and_deadband():
    target = PatientTarget(10, 1, 40, patience=3, deadband=0.1)
    assert [target.wish(wanted) for wanted in (20, 20, 5, 20, 20, 20)] == [10, 10, 10, 10, 10, 20]
    assert [target.wish(wanted) for wanted in (22, 22, 22, 18, 18, 18)] == [20] * 6
    assert [target.wish(100.0) for _ in range(3)][-1] == 40


def test_no_group_in_flight_is_no_range():
    with pytest.raises(ValueError, match="no range"):
        controller(most=0)
