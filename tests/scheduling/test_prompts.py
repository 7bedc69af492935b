"""The prompt schedule as a function of (seed, update)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.config import ConfigError, RolloutConfig
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.scheduling.prompt_schedule import HorizonDraw, PromptSchedule

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


def test_a_share_of_the_prompts_begins_where_the_task_becomes_done_and_the_rest_where_they_did():
    episodes = [(f"e/{index}", 60) for index in range(40)]
    shown = {f"e/{index}": range(10, 20) for index in range(20)}  # of the others nothing is known

    def drawn(share):
        wanted = PromptSchedule(episodes, episodes, 3, RolloutConfig(completing=share), shown)
        return wanted.train(0, 400) + wanted.held_out(400)

    def known(names):
        return [name.start in shown[name.episode_id] for name in names if name.episode_id in shown]

    anywhere, some, always = drawn(0.0), drawn(0.5), drawn(1.0)
    assert anywhere == [
        *PromptSchedule(episodes, episodes, 3).train(0, 400),
        *PromptSchedule(episodes, episodes, 3).held_out(400),
    ]
    assert all(known(always))
    assert np.mean(known(some)) == pytest.approx(0.5 + 0.5 * 10 / 60, abs=4 * np.sqrt(0.25 / 400))
    assert [n for n in always if n.episode_id not in shown] == [
        n for n in anywhere if n.episode_id not in shown
    ]


def test_seeds_differ_between_samples_prompts_and_updates():
    first, second = schedule().seeds(0, 3, 4), schedule().seeds(1, 3, 4)
    drawn = [seed for rows in (first, second, schedule().seeds(-1, 3, 4)) for row in rows for seed in row]
    assert len(set(drawn)) == len(drawn) == 36
    assert schedule().seeds(0, 3, 4) == first


def lengths(shape, least=2, longest=9, **more):
    return RolloutConfig(horizon=longest, horizons={"shape": shape, "least": least, **more})


@given(st.sampled_from(["uniform", "long_tailed"]), st.integers(1, 6), st.integers(0, 20), st.integers(0, 9))
def test_horizons_stay_in_their_bounds_and_follow_from_the_groups_number(shape, least, seed, update):
    rollout = lengths(shape, least, 6)
    drawn = PromptSchedule(TRAIN, HELD_OUT, seed, rollout)
    names = drawn.train(update, 4)
    assert all(least <= name.horizon <= 6 for name in names)
    assert all(PromptName.parse(name.prompt_id) == name for name in names)
    assert names == [drawn.train(4 * update + place, 1)[0] for place in range(4)]
    # windows are those of a schedule whose rollouts are all alike, and an evaluation's rollouts are
    assert [(n.episode_id, n.start) for n in names] == [
        (n.episode_id, n.start) for n in schedule(seed).train(update, 4)
    ]
    assert drawn.held_out(5) == schedule(seed).held_out(5)


def test_long_rollouts_are_as_rare_as_the_tail_says():
    draw = HorizonDraw(lengths("long_tailed", tail=2.0))
    assert draw.lengths.tolist() == list(range(2, 10))
    np.testing.assert_allclose(draw.shares * draw.lengths**2, draw.shares[0] * 4)
    np.testing.assert_allclose(HorizonDraw(lengths("uniform")).shares, 1 / 8)
    found = np.bincount([draw.draw(np.random.default_rng(n)) for n in range(4000)], minlength=10)[2:] / 4000
    np.testing.assert_allclose(found, draw.shares, atol=0.03)


def test_without_a_distribution_names_are_what_they_always_were():
    assert all(name.horizon == 0 for name in schedule().train(0, 9))
    assert PromptName("a@b", 3).prompt_id == "a@b@3"


def test_the_shortest_may_not_be_longer_than_the_longest():
    with pytest.raises(ConfigError, match="longer than the longest"):
        lengths("uniform", least=10)
    assert lengths("fixed", least=10).horizon == 9


def branching(**changes):
    settings = {"clip_frames": 2, "first": 2, "most": 4, "groups_per_clip": 300, **changes}
    return RolloutConfig(horizon=8, branching=settings)


def test_branched_groups_share_all_but_their_last_clip_and_grow_longer():
    drawn = PromptSchedule(TRAIN, HELD_OUT, 3, branching()).train(0, 1500)
    assert all(PromptName.parse(name.prompt_id) == name for name in drawn)
    assert all(name.horizon - name.shared == 2 for name in drawn)
    clips = np.array([name.horizon // 2 for name in drawn])
    for first, longest in ((0, 2), (300, 3), (600, 4), (900, 4)):
        shares = np.bincount(clips[first : first + 300], minlength=6)[1:] / 300
        np.testing.assert_allclose(shares[:longest], 1 / longest, atol=0.1)
        assert not shares[longest:].any()
    plain = PromptSchedule(TRAIN, HELD_OUT, 3)
    assert [(n.episode_id, n.start) for n in drawn[:50]] == [
        (n.episode_id, n.start) for n in plain.train(0, 50)
    ]
    assert PromptSchedule(TRAIN, HELD_OUT, 3, branching()).held_out(5) == plain.held_out(5)


def test_branching_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"5 clips of 2 frames are longer .* 8 frames"):
        branching(most=5)
    with pytest.raises(ConfigError, match="begins at 4 clips"):
        branching(first=4, most=3)
    with pytest.raises(ConfigError, match="draws the length of rollouts"):
        RolloutConfig(horizon=20, horizons={"shape": "uniform"}, branching={"most": 4})
