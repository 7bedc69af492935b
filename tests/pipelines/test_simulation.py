"""The model against closed forms: sums of stage times, the slowest stage's rate, and distributions' own moments."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from roboalign_ray.config import JobConfig
from roboalign_ray.config.asynchrony import StageTimeConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.capacity.simulated_workers import draw
from roboalign_ray.pipelines.capacity.simulation import Simulation, simulate, stage_rates


def job(
    *,
    batch=8,
    rollouts=8,
    scorers=8,
    ranks=1,
    times=(1.0, 0.5, 0.1),
    weights_s=0.25,
    shape="constant",
    **settings,
):
    """Plain stages unless told otherwise: rollout, scorer and learner seconds per group."""
    rollout, scorer, learner = times
    workload = {
        "rollout": {"seconds": rollout, "shape": shape},
        "scorer": {"seconds": scorer},
        "learner": {"seconds": learner},
        "weights_s": weights_s,
        **settings.pop("workload", {}),
    }
    roles = {
        "rollout": {"workers": rollouts},
        "scorer": {"workers": scorers},
        "learner": {"workers": ranks, "max_restarts": 0},
    }
    settings.setdefault("backpressure", {"adaptive": False})
    return JobConfig.model_validate(
        {
            "alignment": {"prompts_per_update": batch, "minibatch_prompts": batch},
            "cluster": roles,
            "asynchrony": {"workload": workload, **settings},
        }
    )


def test_taking_turns_costs_the_sum_of_all_stages():
    result = simulate(job(staleness=0))
    assert result.seconds_per_update == pytest.approx(1.0 + 0.5 + 8 * 0.1 + 0.25)
    assert result.groups_per_second == pytest.approx(8 / 2.55)
    assert result.utilisation == pytest.approx(
        {"rollout": 1 / 2.55, "scorer": 0.5 / 2.55, "learner": 0.8 / 2.55}
    )
    assert result.staleness == {0: 20 * 8}


def test_taking_turns_with_fewer_workers_than_groups():
    """Two rounds of rollouts; scores of the first hide behind the second."""
    result = simulate(job(staleness=0, rollouts=4, scorers=4, ranks=2))
    assert result.seconds_per_update == pytest.approx(2 * 1.0 + 0.5 + 8 * 0.1 / 2 + 0.25)


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ({"rollouts": 4}, "rollout"),
        ({"rollouts": 64, "scorers": 2, "times": (1.0, 1.0, 0.01)}, "scorer"),
        ({"rollouts": 64, "scorers": 64, "times": (1.0, 0.5, 0.2)}, "learner"),
    ],
)
@pytest.mark.parametrize("stale", ["wait", "drop"])
def test_the_slowest_stage_sets_the_pace(shape, role, stale):
    """Constant service, never starved: a stage's throughput is workers over seconds, and it is always busy."""
    config = job(staleness=4, stale=stale, overtaking=True, **shape)
    result = simulate(config, updates=60)
    assert result.ideal_groups_per_second == stage_rates(config)[role]
    assert result.groups_per_second == pytest.approx(result.ideal_groups_per_second, rel=0.02)
    assert result.bottleneck == role
    if role != "learner":  # the learner rests while its weights are handed on
        assert result.utilisation[role] == pytest.approx(1, abs=0.03)
    assert max(result.staleness) <= 4


def test_utilisations_follow_from_the_throughput():
    """Utilisation law: busy share = throughput * seconds / workers, whatever the distribution."""
    result = simulate(job(staleness=2, batch=16, rollouts=12, scorers=6, shape="lognormal"), updates=300)
    rate = result.groups_per_second
    assert result.utilisation["rollout"] == pytest.approx(rate * 1.0 / 12, rel=0.05)
    assert result.utilisation["scorer"] == pytest.approx(rate * 0.5 / 6, rel=0.01)
    assert result.utilisation["learner"] == pytest.approx(rate * 0.1, rel=0.01)


def test_staleness_hides_long_tails():
    """With tails, taking turns waits for the slowest of every batch; a bound of two versions does not."""
    shape = {"batch": 16, "rollouts": 16, "scorers": 16, "times": (1.0, 0.05, 0.02), "shape": "pareto"}
    rates = [
        simulate(job(staleness=eta, overtaking=True, **shape), updates=100).groups_per_second
        for eta in (0, 2)
    ]
    assert rates[1] > 1.7 * rates[0]


def test_without_tails_and_with_a_slow_learner_staleness_buys_little():
    shape = {"times": (0.1, 0.01, 1.0), "weights_s": 0.0}
    rates = [simulate(job(staleness=eta, **shape)).groups_per_second for eta in (0, 2)]
    assert rates[0] == pytest.approx(8 / 8.11)
    assert rates[1] == pytest.approx(1.0)


def test_a_full_queue_stops_rollouts():
    config = job(rollouts=8, scorers=1, times=(0.1, 1.0, 0.01), staleness=4)
    result = simulate(config, updates=30)
    assert result.groups_per_second == pytest.approx(1.0, rel=0.02)
    # 1 scorer with room for 2: of eight workers about seven stand and hold their group
    assert result.blocked > 0.6


def test_lost_workers_cost_their_share_and_no_group():
    """A worker that lives 20 s on average and is away for 5 s is there 20/25 of the time, less repeated work."""
    workload = {"rollout": {"seconds": 0.5, "mean_time_to_failure_s": 20.0, "restart_s": 5.0}}
    result = simulate(
        job(batch=20, rollouts=50, scorers=50, times=(0.5, 0.01, 0.001), weights_s=0.0, staleness=4, overtaking=True,
            workload=workload),
        updates=200,
    )  # fmt: skip
    survival = math.exp(-0.5 / 20)
    # renewal argument: tries until one survives, each lost one costs its time to failure and the restart
    lost_time = 20 - 0.5 * survival / (1 - survival) + 5
    per_group = 0.5 + (1 - survival) / survival * lost_time
    assert result.groups_per_second == pytest.approx(50 / per_group, rel=0.04)
    assert result.counts["failed"] > 50
    counts = result.counts
    assert counts["trained"] == 200 * 20
    assert counts["started"] >= counts["trained"]


def test_a_lost_learner_begins_again():
    workload = {"learner": {"seconds": 0.1, "mean_time_to_failure_s": 4.0, "restart_s": 1.0}}
    result = simulate(job(staleness=0, workload=workload), updates=60)
    assert result.counts["aborted"] > 3
    assert result.counts["trained"] == 60 * 8
    assert result.seconds_per_update > 2.55


def test_pools_grow_to_what_the_learner_takes():
    pools = {"rollout": {"least": 2, "most": 100}, "scorer": {"least": 1, "most": 50}, "every_s": 1.0}
    config = job(
        rollouts=2,
        scorers=1,
        times=(2.0, 0.5, 0.05),
        staleness=4,
        backpressure=pools,
        workload={"provision_s": 5.0},
    )
    result = simulate(config, updates=400)
    rate = 8 / (8 * 0.05 + 0.25)
    assert result.workers["rollout"] == pytest.approx(rate * 2.0 / 0.85, rel=0.15)
    assert result.workers["scorer"] == pytest.approx(rate * 0.5 / 0.85, rel=0.25)
    assert result.groups_per_second == pytest.approx(rate, rel=0.1)


def test_flat_groups_are_made_again():
    config = job(staleness=1, flat_groups="resample", workload={"flat_share": 0.5})
    result = simulate(config, updates=40)
    assert result.counts["trained"] == 40 * 8
    assert result.counts["dropped_flat"] == result.counts["resampled"] > 200


def test_the_same_seed_gives_the_same_run():
    config = job(staleness=2, shape="pareto", workload={"segments": 3})
    first, second = simulate(config), simulate(config)
    assert json.dumps(first.as_json()) == json.dumps(second.as_json())
    assert simulate(config.model_copy(update={"seed": 1})) != first


def test_ten_thousand_workers():
    config = job(batch=5000, rollouts=10_000, scorers=3000, ranks=600, shape="lognormal", staleness=3)
    result = Simulation(config).run(1, 4)
    assert result.events > 20_000 * 2
    assert 0 < result.groups_per_second <= result.ideal_groups_per_second * 1.1


def test_a_job_that_gets_nowhere_says_so():
    workload = {"rollout": {"seconds": 100.0, "mean_time_to_failure_s": 0.1, "restart_s": 0.0}}
    with pytest.raises(UserError, match="almost no group"):
        simulate(job(batch=2, rollouts=1, workload=workload), updates=2)


@pytest.mark.parametrize("shape", ["constant", "exponential", "lognormal", "pareto"])
def test_moments(shape):
    stage = StageTimeConfig(seconds=3.0, shape=shape, variation=0.5)
    source = random.Random(0)
    drawn = np.array([draw(stage, source) for _ in range(40_000)])
    assert drawn.mean() == pytest.approx(3.0, rel=0.02)
    variation = {"constant": 0.0, "exponential": 1.0}.get(shape, 0.5)
    assert drawn.std() / drawn.mean() == pytest.approx(variation, rel=0.08, abs=1e-12)


def test_a_job_that_names_no_staleness_takes_turns():
    """The sum of all stages, as closed form; every group is trained by the weights that made it."""
    result = simulate(job())
    assert result.seconds_per_update == pytest.approx(1.0 + 0.5 + 8 * 0.1 + 0.25)
    assert result.staleness.keys() == {0}


def test_without_adaptive_back_pressure_nothing_is_resized():
    pools = {"adaptive": False, "rollout": {"least": 2, "most": 100}, "scorer": {"least": 1, "most": 50}}
    result = simulate(job(rollouts=2, scorers=1, staleness=4, backpressure=pools), updates=100)
    assert (result.workers["rollout"], result.workers["scorer"]) == (2, 1)
