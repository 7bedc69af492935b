"""The prompt schedule as a function of (seed, update)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.prompts import PromptName, PromptSchedule

TRAIN = [(f"a@b/{index}", 1 + index % 4) for index in range(7)]
HELD_OUT = [(f"h/{index}", 3) for index in range(3)]


def schedule(seed=0):
    return PromptSchedule(TRAIN, HELD_OUT, seed)


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 9))
def test_windows_fit_their_episode_and_names_survive_the_trip(seed, update, count):
    starts = dict(TRAIN)
    for name in schedule(seed).train(update, count):
        assert 0 <= name.start < starts[name.episode_id]
        assert PromptName.parse(name.prompt_id) == name


def test_an_update_is_the_same_whatever_came_before():
    assert schedule().train(5, 4) == schedule().train(5, 4)
    assert schedule(0).train(5, 4) != schedule(1).train(5, 4)


def test_every_episode_is_used_once_before_any_comes_again():
    drawn = [name.episode_id for update in range(7) for name in schedule().train(update, 3)]
    for lap in range(3):
        assert sorted(drawn[lap * 7 : (lap + 1) * 7]) == sorted(name for name, _ in TRAIN)
    assert drawn[:7] != drawn[7:14]


def test_held_out_windows_do_not_depend_on_the_job_seed():
    assert schedule(1).held_out(5) == schedule(2).held_out(5)
    assert {name.episode_id for name in schedule().held_out(3)} == {name for name, _ in HELD_OUT}


def test_seeds_differ_between_samples_prompts_and_updates():
    first, second = schedule().seeds(0, 3, 4), schedule().seeds(1, 3, 4)
    drawn = [seed for rows in (first, second, schedule().seeds(-1, 3, 4)) for row in rows for seed in row]
    assert len(set(drawn)) == len(drawn) == 36
    assert schedule().seeds(0, 3, 4) == first
