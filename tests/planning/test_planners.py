"""Planners against costs whose optimum is known in closed form, and each of their promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.candidates import CandidateShape
from roboalign_ray.planning.mppi import path_weights
from roboalign_ray.planning.protocol import ActionPlan, Problem
from roboalign_ray.planning.registry import PLANNERS, open_planner

LOW, HIGH = np.array([-1.0, 0.0, -0.2]), np.array([1.0, 4.0, 0.1])
HORIZON = 6
SEARCHES = ("cem", "mppi", "random_shooting", "refine")
ALL = (*SEARCHES, "best_of_n")


def optimum(seed: int) -> np.ndarray:
    """Float64 [H, A], anywhere in the inner four fifths of the bounds."""
    return LOW + (HIGH - LOW) * np.random.default_rng(1000 + seed).uniform(0.1, 0.9, (HORIZON, 3))


def quadratic(target: np.ndarray):
    """Mean squared distance in halves of the range: 1 is the distance from the middle to the edge."""

    def cost(state, candidates, seed):
        return (((candidates - target) / ((HIGH - LOW) / 2)) ** 2).mean(axis=(1, 2))

    return cost


def problem(cost, horizon: int = HORIZON) -> Problem:
    return Problem(None, cost, LOW, HIGH, horizon)


def search(name: str, seed: int, **changes) -> ActionPlan:
    budget = {"candidates": 64, "iterations": 20, **changes}
    return open_planner(name, budget).plan(problem(quadratic(optimum(seed))), seed=seed)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("cem", 0.02), ("mppi", 0.005), ("refine", 0.005)]
)  # mean squared distance in halves of the range; uniform candidates have 0.5 on average
def test_planners_find_the_optimum_of_a_quadratic(name, tolerance) -> None:
    for seed in range(10):
        assert search(name, seed).cost < tolerance


@pytest.mark.parametrize("name", ["cem", "mppi", "refine"])
def test_planners_beat_random_shooting_at_equal_budget(name) -> None:
    won = 0
    for seed in range(20):
        ours, theirs = search(name, seed, iterations=6), search("random_shooting", seed, iterations=6)
        assert ours.evaluated == theirs.evaluated == 6 * 64
        won += ours.cost < theirs.cost
    assert won == 20


# Plans of the code as it was first checked by the tests above: what moves them must be meant.
GOLDEN = {
    "cem": [-0.18818, 2.64869, -0.07543, -0.12869, 2.13197, -0.07543],
    "mppi": [0.17049, 2.7314, -0.05119, -0.40477, 2.27196, -0.05119],
    "random_shooting": [-0.06278, 3.22137, -0.05803, -0.72155, 1.17049, -0.05803],
    "refine": [-0.12817, 2.40357, -0.05964, -0.32424, 2.49468, -0.05964],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_golden_plans(name) -> None:
    settings = {"candidates": 16, "iterations": 3, "knots": [2, 2, 1], "straight": 0.25}
    found = open_planner(name, settings).plan(problem(quadratic(optimum(0))), seed=4)
    np.testing.assert_allclose(found.actions[[0, -1]].ravel(), GOLDEN[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SEARCHES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), knots=st.sampled_from([None, 1, 3, [2, 9, 1]]), straight=st.floats(0, 1))
def test_bounds_hold_and_the_best_of_all_is_the_plan(name, seed, knots, straight) -> None:
    seen: list[np.ndarray] = []

    def cost(state, candidates, seed):
        seen.append(candidates)
        return candidates.sum(axis=(1, 2))  # the optimum is a corner

    settings = {"candidates": 12, "iterations": 3, "knots": knots, "straight": straight}
    found = open_planner(name, settings).plan(problem(cost), seed=seed)
    for candidates in seen:
        assert candidates.dtype == np.float32
        assert candidates.shape == (12, HORIZON, 3)
        assert (candidates >= LOW.astype(np.float32)).all()
        assert (candidates <= HIGH.astype(np.float32)).all()
    costs = np.concatenate([candidates.sum(axis=(1, 2)) for candidates in seen])
    assert found.cost == pytest.approx(costs.min())
    assert found.actions.sum() == pytest.approx(found.cost, abs=1e-5)


@pytest.mark.parametrize("name", SEARCHES)
def test_one_seed_is_shared_by_all_candidates_and_sets(name) -> None:
    """Identical candidates meet identical noise, so they have identical costs; another seed meets other noise."""
    seeds = []

    def noisy(state, candidates, seed):
        seeds.append(seed)
        noise = np.random.default_rng(seed).normal(size=candidates.shape[1:])
        return ((candidates + noise) ** 2).mean(axis=(1, 2))

    settings = {"candidates": 8, "iterations": 4}
    plans = [open_planner(name, settings).plan(problem(noisy), seed=seed) for seed in (7, 7, 8)]
    assert set(seeds[:8]) == {7}
    assert seeds[8:] == [8] * 4
    np.testing.assert_array_equal(plans[0].actions, plans[1].actions)
    assert not np.array_equal(plans[0].actions, plans[2].actions)


@pytest.mark.parametrize("name", ["cem", "mppi", "refine"])
def test_a_warm_start_helps(name) -> None:
    """At a small budget, from a plan near the optimum; what it begins with is never lost."""
    better = 0
    for seed in range(10):
        goal = optimum(seed)
        warm = np.clip(goal + 0.05 * (HIGH - LOW), LOW, HIGH)
        planner = open_planner(name, {"candidates": 16, "iterations": 2})
        cold, hot = (planner.plan(problem(quadratic(goal)), seed=seed, warm=given) for given in (None, warm))
        assert hot.cost <= quadratic(goal)(None, warm[None].astype(np.float32), 0)[0] + 1e-9
        better += hot.cost < cold.cost
    assert better == 10


def test_what_is_left_of_a_plan_is_a_warm_start() -> None:
    found = search("cem", 0)
    rest = found.rest(2)
    np.testing.assert_array_equal(rest, found.actions[2:])
    shape = CandidateShape(problem(None))
    [whole] = shape.actions(shape.knots(rest[None], "warm"))
    np.testing.assert_allclose(whole[: HORIZON - 2], rest, atol=1e-6)
    np.testing.assert_allclose(whole[HORIZON - 2 :], rest[[-1, -1]], atol=1e-6)
    again = open_planner("refine").plan(problem(quadratic(optimum(0))), warm=found.rest(HORIZON))
    assert again.evaluated  # nothing left: a cold start


def test_best_of_n_chooses_among_proposals_alone() -> None:
    goal, rng = optimum(3), np.random.default_rng(0)
    proposals = rng.uniform(LOW, HIGH, (20, HORIZON, 3))
    found = open_planner("best_of_n").plan(problem(quadratic(goal)), proposals=proposals)
    costs = quadratic(goal)(None, proposals.astype(np.float32), 0)
    np.testing.assert_array_equal(found.actions, proposals[costs.argmin()].astype(np.float32))
    assert found.cost == costs.min()
    assert found.evaluated == 20
    warm = open_planner("best_of_n").plan(problem(quadratic(goal)), proposals=proposals, warm=goal)
    assert warm.cost < 1e-9
    with pytest.raises(UserError, match="nothing to choose from; give proposals"):
        open_planner("best_of_n").plan(problem(quadratic(goal)))


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_begin_with_proposals_too(name) -> None:
    goal = optimum(5)
    proposals = np.stack([np.broadcast_to(LOW, (HORIZON, 3)), goal])
    planner = open_planner(name, {"candidates": 8, "iterations": 1})
    assert planner.plan(problem(quadratic(goal)), proposals=proposals).cost < 1e-9


def test_smoothness_is_the_mean_squared_change_in_halves_of_the_range() -> None:
    jump = np.zeros((1, 2, 3), np.float32) + LOW.astype(np.float32)
    jump[0, 1] = HIGH
    planner = open_planner("best_of_n", {"smoothness": 0.5})
    found = planner.plan(
        problem(lambda state, candidates, seed: np.zeros(len(candidates)), 2), proposals=jump
    )
    assert found.cost == pytest.approx(0.5 * 4)  # a change over the whole range is two halves
    rough, smooth = (
        open_planner("cem", {"iterations": 10, "smoothness": weight}).plan(problem(quadratic(optimum(1))))
        for weight in (0.0, 3.0)
    )
    shape = CandidateShape(problem(None))
    assert shape.roughness(smooth.actions[None]) < 0.5 * shape.roughness(rough.actions[None])


def test_knots_are_joined_by_straight_lines() -> None:
    shape = CandidateShape(problem(None, horizon=5), [3, 2, 1])
    assert shape.size == 6
    [actions] = shape.actions(np.array([[-1.0, 1.0, 0.0, 0.0, 4.0, 0.05]]))
    np.testing.assert_allclose(actions[:, 0], [-1, 0, 1, 0.5, 0])
    np.testing.assert_allclose(actions[:, 1], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(actions[:, 2], 0.05)
    held = shape.straight(np.array([[-1.0, 1.0, 0.0, 3.0, 4.0, 0.05]]))
    np.testing.assert_array_equal(held, [[-1, -1, -1, 3, 3, 0.05]])
    drawn = np.random.default_rng(0).uniform(shape.low, shape.high, (7, 6))
    np.testing.assert_allclose(shape.knots(shape.actions(drawn), "warm"), drawn, atol=1e-5)


def test_a_share_of_the_candidates_is_straight() -> None:
    seen = []

    def cost(state, candidates, seed):
        seen.append(np.ptp(candidates, axis=1).max(axis=1) == 0)
        return candidates.sum(axis=(1, 2))

    open_planner("cem", {"candidates": 20, "iterations": 3, "straight": 0.25}).plan(problem(cost))
    assert [straight.sum() for straight in seen] == [5, 5, 5]


def test_elites_and_history() -> None:
    found = search("cem", 2, iterations=5, elites=4)
    assert len(found.history) == 5
    bests = [iteration.best for iteration in found.history]
    assert bests == sorted(bests, reverse=True)
    assert bests[-1] == found.cost
    for iteration in found.history:
        assert iteration.elites.shape == (4, HORIZON, 3)
        costs = quadratic(optimum(2))(None, iteration.elites, 0)
        np.testing.assert_allclose(iteration.elite_costs, costs, rtol=1e-6)
        assert (np.diff(iteration.elite_costs) >= 0).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_the_time_budget_ends_a_search_before_it_is_overrun(name) -> None:
    """A clock that only the cost advances: three seconds a set, so that ten seconds hold three sets."""
    now = [0.0]

    def slow(state, candidates, seed):
        now[0] += 3.0
        return candidates.sum(axis=(1, 2))

    planner = open_planner(name, {"iterations": 9, "seconds": 10.0})
    planner.clock = lambda: now[0]
    found = planner.plan(problem(slow))
    assert (len(found.history), found.ended, found.seconds) == (3, "time", 9.0)
    now[0] = 0.0
    planner = open_planner(name, {"iterations": 9, "seconds": 1.0})
    planner.clock = lambda: now[0]
    assert len(planner.plan(problem(slow)).history) == 1
    assert search(name, 0, iterations=2, seconds=1e6).ended == "iterations"


@pytest.mark.parametrize("name", SEARCHES)
def test_candidates_without_a_cost_are_never_chosen(name) -> None:
    """Half of the space has none; with none anywhere the planner says so."""

    def half(state, candidates, seed):
        costs = candidates.sum(axis=(1, 2))
        return np.where(candidates[:, 0, 0] < 0, np.nan, costs)

    planner = open_planner(name, {"candidates": 32})
    found = planner.plan(problem(half))
    assert found.actions[0, 0] >= 0
    assert 0 < sum(iteration.failed for iteration in found.history) < found.evaluated
    with pytest.raises(UserError, match="none of the 128 candidates has a cost"):
        planner.plan(problem(lambda state, candidates, seed: np.full(len(candidates), np.inf)))


def test_weights_of_mppi_are_those_of_its_formula() -> None:
    costs = np.array([1.0, 2.0, np.inf, 4.0])
    spread = np.std([1.0, 2.0, 4.0])
    wanted = np.exp(-costs / (0.5 * spread))
    np.testing.assert_allclose(path_weights(costs, 0.5), wanted / wanted.sum())
    assert path_weights(np.full(3, np.inf), 0.5) is None
    np.testing.assert_array_equal(path_weights(np.array([2.0, 2.0]), 0.5), [0.5, 0.5])


def test_planners_have_names(tmp_path, monkeypatch) -> None:
    assert set(PLANNERS.names()) == set(ALL)
    (tmp_path / "my_planner.py").write_text(
        "import numpy as np\n"
        "from pydantic import BaseModel\n"
        "from roboalign_ray.planning.protocol import ActionPlan\n"
        "class Still:\n"
        "    class Config(BaseModel):\n"
        "        value: float = 0.0\n"
        "    def __init__(self, config):\n"
        "        self.value = config.value\n"
        "    def plan(self, problem, *, seed=0, warm=None, proposals=None):\n"
        "        return ActionPlan(np.full((problem.horizon, problem.dims), self.value), 0.0, ())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = open_planner("my_planner:Still", {"value": 0.5}).plan(problem(None, 2))
    np.testing.assert_array_equal(found.actions, np.full((2, 3), 0.5))


FAULTS = {
    "unknown planner": (lambda: open_planner("cmm"), "unknown planner 'cmm'; did you mean 'cem'"),
    "unknown setting": (lambda: open_planner("cem", {"candidate": 3}), "did you mean 'candidates'"),
    "no candidates": (lambda: open_planner("cem", {"candidates": 0}), "greater than 0"),
    "text for a number": (lambda: open_planner("mppi", {"spread": "wide"}), "spread"),
    "no horizon": (lambda: problem(None, 0), "a plan of 0 actions"),
    "bounds that cross": (lambda: Problem(None, None, HIGH, LOW, 2), "lies above"),
    "bounds without end": (lambda: Problem(None, None, LOW, LOW + np.inf, 2), "not finite"),
    "knots of other dimensions": (
        lambda: open_planner("cem", {"knots": [1, 2]}).plan(problem(quadratic(optimum(0)))),
        "2 numbers of knots for 3 action dimensions",
    ),
    "warm start of other width": (
        lambda: open_planner("cem").plan(problem(quadratic(optimum(0))), warm=np.zeros((4, 2))),
        "warm: are of shape",
    ),
    "proposals that are not finite": (
        lambda: open_planner("refine").plan(problem(None), proposals=np.full((1, 2, 3), np.nan)),
        "proposals: hold a number that is not finite",
    ),
    "cost of another number": (
        lambda: open_planner("cem").plan(problem(lambda state, candidates, seed: np.zeros(3))),
        "cost: gives (3,) for 64 candidates",
    ),
    "negative seed": (lambda: open_planner("cem").plan(problem(None), seed=-1), "seed: is -1"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_does_not_fit_is_told_in_one_line(kind) -> None:
    ask, expected = FAULTS[kind]
    with pytest.raises(UserError) as caught:
        ask()
    line = str(caught.value)
    assert expected in line
    assert "\n" not in line
