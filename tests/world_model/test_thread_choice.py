"""The number of threads follows the times of the passes: near the better of both, whatever happens beside."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.world_model.token.native.thread_choice import FIRST, TRIED, ThreadChoice

ALONE, BESIDE = {2: 1.0, 1: 1.6}, {2: 3.0, 1: 2.0}


def run(times: Iterator[dict[int, float]], noise: Callable[[], float] = lambda: 1.0) -> tuple[float, float]:
    """Total time of the passes as chosen, and had every one of them run on the better number."""
    choice, total, best = ThreadChoice(2), 0.0, 0.0
    for costs in times:
        threads, factor = choice.threads(), noise()
        total += costs[threads] * factor
        best += min(costs.values()) * factor
        choice.took(threads, costs[threads] * factor)
    return total, best


@pytest.mark.parametrize("costs", [ALONE, BESIDE, {2: 1.0, 1: 1.0}, {2: 1.0, 1: 30.0}])
def test_a_rollout_takes_little_more_than_on_the_better_number(costs: dict[int, float]) -> None:
    total, best = run(iter([costs] * 5000))
    assert total < 1.05 * best


def test_a_collapse_costs_its_first_passes_alone() -> None:
    total, best = run(iter([{2: 25.0, 1: 2.0}] * 5000))
    assert total - best < 1.1 * (25 - 2) * FIRST + 9 * 25


def test_a_first_rollout_beside_other_work_is_near_the_better_number() -> None:
    total, best = run(iter([BESIDE] * 480))
    assert total < 1.1 * best


@given(st.lists(st.sampled_from([ALONE, BESIDE]), min_size=1, max_size=6), st.integers(0, 2**32))
def test_it_follows_what_changes_beside_it(periods: list[dict[int, float]], seed: int) -> None:
    rng = random.Random(seed)
    times = iter([costs for costs in periods for _ in range(4000)])
    total, best = run(times, lambda: rng.uniform(0.8, 1.3))
    assert total < 1.1 * best


def test_the_first_trial_comes_soon_and_has_its_length() -> None:
    choice, used = ThreadChoice(4), []
    for _ in range(FIRST + TRIED + 1):
        used.append(choice.threads())
        choice.took(used[-1], {4: 1.0, 1: 0.99}[used[-1]])
    assert used == [4] * FIRST + [1] * TRIED + [4]


def test_a_trial_that_is_lost_already_ends() -> None:
    choice, used = ThreadChoice(4), []
    for _ in range(FIRST + TRIED):
        used.append(choice.threads())
        choice.took(used[-1], {4: 1.0, 1: 4.0}[used[-1]])
    assert used == [4] * FIRST + [1] * (TRIED // 4) + [4] * (TRIED - TRIED // 4)


def test_equal_numbers_stay_with_all_threads() -> None:
    choice = ThreadChoice(2)
    for _ in range(2000):
        choice.took(choice.threads(), 1.0)
    assert choice.current == 2
