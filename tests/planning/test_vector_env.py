"""The vector environment: Gymnasium's contract, one row's course whatever the others do, and states that come back."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_planning import columns, moves, picture, token_options, toy, toy_options

import roboalign_ray.planning
from roboalign_ray.episodes.store import open_store
from roboalign_ray.planning.vector_env import WorldModelVectorEnv


def make_envs(num_envs: int = 3, **options) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(num_envs, **toy_options(**options))


def make_token_envs(folder: Path, num_envs: int = 3, **options) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(num_envs, **token_options(folder, **options))


def play(envs: WorldModelVectorEnv, actions: np.ndarray, seed: int | None = None) -> np.ndarray:
    """Observations [T + 1, n, H, W, 3] of actions [T, n, A]."""
    first = envs.reset(seed=seed)[0]
    return np.stack([first, *(envs.step(action)[0] for action in actions)])


def test_the_square_goes_where_the_actions_say() -> None:
    """Against the toy's own arithmetic: it moves by the action, and by noise below one column."""
    envs = make_envs(num_envs=2, horizon=9, world_model=toy(gain=3.0))
    actions = np.zeros((6, 2, 2), np.float32)
    actions[:, 0, 1], actions[:, 1, 1] = 1.0, -1.0
    seen = columns(play(envs, actions, seed=3))
    assert (seen[0] == 10).all()
    wanted = 10 + 3 * np.arange(7)
    assert np.abs(seen[:, 0] - wanted).max() <= 6
    assert seen[-1, 0] > 20
    assert seen[-1, 1] % 32 > 20  # round the edge


def test_spaces_and_kinds_of_what_comes_back() -> None:
    for observation in ("rgb", "dict"):
        envs = make_envs(
            observation=observation, world_model=toy(views=2), image=picture(4, 2), instruction="go"
        )
        seen, infos = envs.reset(seed=0)
        assert seen in envs.observation_space
        assert infos["frames_since_refresh"].tolist() == [0, 0, 0]
        seen, rewards, ended, cut, infos = envs.step(envs.action_space.sample())
        assert seen in envs.observation_space
        assert [part.dtype for part in (rewards, ended, cut)] == [np.float64, np.bool_, np.bool_]
        assert [part.shape for part in (rewards, ended, cut)] == [(3,)] * 3
    assert seen["instruction"] == ("go",) * 3
    assert seen["views"].shape == (3, 2, 32, 32, 3)


def test_a_row_does_not_depend_on_the_others() -> None:
    """Alone, in a batch, and among others that begin anew at other times: the same frames."""
    actions = moves(1, 5, 3)
    together = play(make_envs(horizon=9), actions, seed=20)
    for row in range(3):
        alone = play(make_envs(num_envs=1, horizon=9), actions[:, row : row + 1], seed=20 + row)
        np.testing.assert_array_equal(alone[:, 0], together[:, row])
    envs = make_envs(horizon=9)
    envs.reset(seed=20)
    for number, action in enumerate(actions):
        if number in (1, 2, 4):
            envs.reset(options={"reset_mask": np.array([False, True, number == 2])})
        np.testing.assert_array_equal(envs.step(action)[0][0], together[number + 1, 0])
    assert [sorted(c.members) for c in envs._rows.cohorts] == [[-1, -1, 0], [-1, 2], [1]]


def test_cohorts_end_with_their_last_member() -> None:
    envs = make_envs(horizon=20)
    envs.reset(seed=0)
    for row in (1, 0, 2, 1):
        mask = np.arange(3) == row
        envs.reset(options={"reset_mask": mask})
        envs.step(moves(2, 3))
    assert [c.members for c in envs._rows.cohorts] == [[0], [2], [1]]
    envs.reset()
    assert [c.members for c in envs._rows.cohorts] == [[0, 1, 2]]


def test_seeds_give_starts_and_predictions(token_job) -> None:
    envs = make_token_envs(token_job, 4, split="train")
    actions = np.stack([envs.action_space.sample() for _ in range(2)])
    first, again, other = (play(envs, actions, seed) for seed in (5, 5, 50))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])
    alone = make_token_envs(token_job, 1, split="train")
    seen = play(alone, actions[:, 2:3], seed=7)[:, 0].astype(int)
    assert np.abs(seen - first[:, 2]).max() <= 1  # a decoder's last bit may depend on the batch


def test_windows_name_start_states(token_job) -> None:
    store = open_store(token_job / "store")
    envs = make_token_envs(token_job, windows="toy/03@4", observation="dict")
    seen, _ = envs.reset(seed=1)
    np.testing.assert_array_equal(seen["views"][1, 0], store.read("toy/03").view()[4])
    assert seen["instruction"] == ("push the square",) * 3
    low, high = envs.setup.low, envs.setup.high  # what was observed, since the store states no bounds
    assert low.tolist() == [-2, -2]
    assert high.tolist() == [2, 2]


def test_episodes_are_cut_at_the_horizon_and_begin_anew() -> None:
    envs = make_envs(horizon=2)
    play(envs, moves(3, 1, 3), seed=0)
    *_, cut, _ = envs.step(moves(4, 3))
    assert cut.all()
    wild = np.full((3, 2), 99.0, np.float32)  # the action of a step that begins anew is not looked at
    seen, rewards, ended, cut, infos = envs.step(wild)
    assert (columns(seen) == 10).all()
    assert not np.any([rewards, ended, cut])
    assert infos["frames_since_refresh"].tolist() == [0, 0, 0]
    envs.step(moves(5, 3))


def test_without_automatic_resets_an_episode_that_is_over_takes_no_step() -> None:
    envs = make_envs(horizon=1, autoreset_mode="Disabled")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    play(envs, moves(6, 1, 3), seed=0)
    with pytest.raises(roboalign_ray.UserError, match="sub-environment 0 is over"):
        envs.step(moves(7, 3))
    envs.reset(options={"reset_mask": np.ones(3, np.bool_)})
    envs.step(moves(8, 3))


def test_frames_since_the_last_refresh() -> None:
    """The toy's segments have three frames."""
    envs = make_envs(num_envs=1, horizon=9)
    envs.reset(seed=0)
    told = [envs.step(moves(9, 1))[4]["frames_since_refresh"][0] for _ in range(7)]
    assert told == [1, 2, 3, 1, 2, 3, 1]


def test_branches_share_history_and_go_their_own_ways() -> None:
    envs = make_envs(horizon=9)
    play(envs, moves(10, 2, 3), seed=0)
    envs.reset(options={"reset_mask": np.array([False, True, False])})  # two ages
    before = envs.save_state()
    many = envs.branch([2, 1], 3, seed=8)
    assert many.num_envs == 6
    seen = many._observations()
    for place, row in enumerate([2, 2, 2, 1, 1, 1]):
        np.testing.assert_array_equal(seen[place], envs._observations()[row])
    actions = moves(11, 4, 6)
    frames = np.stack([many.step(action)[0] for action in actions])
    assert len({frames[:, copy].tobytes() for copy in range(3)}) == 3
    again = envs.branch([2, 1], 3, seed=8)
    np.testing.assert_array_equal(np.stack([again.step(action)[0] for action in actions]), frames)
    for copy in range(6):  # as separate copies would
        alone = envs.branch([2 if copy < 3 else 1], 1, seed=8 + copy)
        one = np.stack([alone.step(action[copy : copy + 1])[0][0] for action in actions])
        np.testing.assert_array_equal(one, frames[:, copy])
    after = envs.save_state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("model", ["toy", "token"])
def test_a_saved_state_goes_on_with_the_same_frames(token_job, tmp_path, model) -> None:
    make = make_envs if model == "toy" else partial(make_token_envs, token_job)
    envs = make(horizon=9)
    envs.action_space.seed(1)
    actions = [envs.action_space.sample() for _ in range(6)]
    play(envs, np.stack(actions[:2]), seed=0)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    np.savez(tmp_path / "state.npz", **envs.save_state())
    expected = [envs.step(action) for action in actions[2:]]
    after = envs.reset()[0]
    envs.load_state(tmp_path / "state.npz")
    assert_equal_steps([envs.step(action) for action in actions[2:]], expected)
    np.testing.assert_array_equal(envs.reset()[0], after)  # the generators came back, too
    fresh = make(horizon=9)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as read:
        fresh.load_state(read)
    assert_equal_steps([fresh.step(action) for action in actions[2:]], expected)


def assert_equal_steps(first: list, second: list) -> None:
    for one, other in zip(first, second, strict=True):
        for part, again in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(part, again)


def test_episodes_may_begin_from_a_saved_state(tmp_path) -> None:
    envs = make_envs(num_envs=2, horizon=9)
    apart = np.tile(np.float32([[0, 1], [0, -1]]), (4, 1, 1))
    seen = play(envs, apart, seed=0)[-1]
    np.savez(tmp_path / "state.npz", **envs.save_state())
    more = make_envs(num_envs=6, image=None, state=tmp_path / "state.npz", horizon=2)
    begun, infos = more.reset(seed=0)
    rows = [next(row for row in range(2) if np.array_equal(seen[row], frame)) for frame in begun]
    assert set(rows) == {0, 1}
    assert infos["frames_since_refresh"].tolist() == [1] * 6  # the fourth frame, of segments of three
    more.step(moves(13, 6))
    *_, cut, _ = more.step(moves(14, 6))
    assert cut.all()


ANOTHER_PROCESS = """
import sys
import numpy as np
from roboalign_ray.planning.vector_env import WorldModelVectorEnv
folder, state, actions, out = sys.argv[1:]
envs = WorldModelVectorEnv(
    3, world_model=folder + "/world_model", store=folder + "/store", horizon=9,
    rollout={"refresh": {"policy": "swr", "window": 2}},
)
envs.load_state(state)
np.save(out, np.stack([envs.step(action)[0] for action in np.load(actions)]))
"""


def test_a_saved_state_loads_in_another_process(token_job, tmp_path) -> None:
    envs = make_token_envs(token_job, horizon=9)
    actions = np.stack([envs.action_space.sample() for _ in range(5)])
    play(envs, actions[:3], seed=0)
    np.savez(tmp_path / "state.npz", **envs.save_state())
    np.save(tmp_path / "actions.npy", actions[3:])
    arguments = [token_job, *(tmp_path / name for name in ("state.npz", "actions.npy", "out.npy"))]
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, *map(str, arguments)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = np.stack([envs.step(action)[0] for action in actions[3:]])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_make_vec_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = toy_options()
        envs = gymnasium.make_vec("RoboAlign/WorldModel-v0", num_envs=2, **options)
    assert isinstance(envs, WorldModelVectorEnv)
    assert envs.spec.id == "RoboAlign/WorldModel-v0"
    first, _ = envs.reset(seed=4)
    for mode in ("sync", "vector_entry_point"):
        other = gymnasium.make_vec("RoboAlign/WorldModel-v0", num_envs=2, vectorization_mode=mode, **options)
        np.testing.assert_array_equal(other.reset(seed=4)[0], first)


@pytest.mark.parametrize("observation", ["rgb", "dict"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_native_vector_env_and_gymnasiums_own_agree(mode, observation) -> None:
    """Gymnasium's loop over single environments is the reference: resets, final observations and infos included."""
    reward = {"toy_planning:column": {"weight": 1.0}}
    options = toy_options(
        horizon=3, reward=reward, success=14, world_model=toy(gain=3.0), observation=observation
    )
    native = gymnasium.make_vec("RoboAlign/WorldModel-v0", num_envs=3, autoreset_mode=mode, **options)
    loop = SyncVectorEnv(
        [lambda: gymnasium.make("RoboAlign/WorldModel-v0", **options)] * 3, autoreset_mode=mode
    )
    assert_equal_trees(native.reset(seed=11), loop.reset(seed=11))
    ends = []
    for action in moves(15, 9, 3):
        one, other = native.step(action), loop.step(action)
        assert_equal_trees(one, other)
        ends.append((one[2].any(), one[3].any(), "final_obs" in one[4]))
    assert {True, False} == {
        end[0] for end in ends
    }  # ended by success and by the horizon, at different times
    assert {True, False} == {end[1] for end in ends}
    assert any(end[2] for end in ends) == (mode is AutoresetMode.SAME_STEP)


def assert_equal_trees(one, other) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal_trees(one[name], other[name])
    elif isinstance(one, tuple | list) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other)
        for part, again in zip(one, other, strict=True):
            assert_equal_trees(part, again)
    else:
        np.testing.assert_array_equal(one, other)


def test_vector_wrappers() -> None:
    wrappers = gymnasium.wrappers.vector
    reward = {"toy_planning:column": {"weight": 1.0}}
    envs = wrappers.NormalizeReward(wrappers.RecordEpisodeStatistics(make_envs(horizon=2, reward=reward)))
    envs.reset(seed=0)
    for number, action in enumerate(moves(16, 6, 3)):
        _, _, _, cut, infos = envs.step(action)
        assert cut.all() == (number % 3 == 1)
        assert ("episode" in infos) == cut.all()
        if cut.all():
            assert infos["episode"]["l"].tolist() == [2, 2, 2]


def test_rendering() -> None:
    options = {"world_model": toy(views=2), "image": picture(3, 2)}
    envs = make_envs(render_mode="rgb_array", **options)
    seen, _ = envs.reset(seed=0)
    shown = envs.render()
    assert [frame.shape for frame in shown] == [(32, 64, 3)] * 3
    np.testing.assert_array_equal(shown[1][:, :32], seen[1])
    listed = make_envs(render_mode="rgb_array_list", **options)
    play(listed, moves(17, 2, 3), seed=0)
    assert [len(frames) for frames in listed.render()] == [3, 3, 3]
    assert listed.render() == ([], [], [])
    assert make_envs().render() is None
