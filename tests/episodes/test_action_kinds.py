"""No motion is lost where frames are skipped: every kind of action, stride and source against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from action_sets import by_hand, write_lerobot, write_rlds_action
from episode_files import droid_states, write_droid
from hypothesis import given, settings
from hypothesis import strategies as st
from made_episodes import made_episode

from roboalign_ray.episodes.action_kinds import accumulate_actions
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.episodes.transforms import stride_episode, unwrap_episode
from roboalign_ray.episodes.windows import WindowSpec, cut_window
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert

# One dimension of every kind that a name can declare, beside what the name says.
NAMED = {
    "delta_x": "delta",
    "dy": "delta",
    "rel_z": "delta",
    "delta_roll [rad]": "delta_angle",
    "base_velocity": "velocity",
    "vx [m/s]": "velocity",
    "elbow.pos": "absolute",
    "gripper.pos": "hold",
    "gripper_toggle": "toggle",
    "terminate_episode": "event",
}


def motion(length: int, seed: int) -> np.ndarray:
    """float32 [T, len(NAMED)]: small numbers, and one-shot commands in -1, 0, 1 where the kind asks for them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(scale=0.05, size=(length, len(NAMED)))
    for dim, kind in enumerate(NAMED.values()):
        if kind == "toggle":
            values[:, dim] = rng.choice([-1, 0, 0, 0, 1], length)
        if kind == "event":
            values[:, dim] = rng.choice([0, 0, 0, 1], length)
    return values.astype(np.float32)


def expected(actions: np.ndarray, kinds: list[str], stride: int) -> np.ndarray:
    return np.array([by_hand(actions[:, d], kind, stride) for d, kind in enumerate(kinds)]).T


@given(length=st.integers(1, 40), stride=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_every_kind_equals_the_sum_by_hand(length: int, stride: int, seed: int) -> None:
    actions, kinds = motion(length, seed), list(NAMED.values())
    merged = accumulate_actions(actions, kinds, stride)
    np.testing.assert_allclose(merged, expected(actions, kinds, stride), atol=1e-6)
    if stride == 1:
        np.testing.assert_array_equal(merged, actions)


@given(length=st.integers(2, 40), stride=st.integers(2, 9), seed=st.integers(0, 10_000))
def test_rates_and_increments_lead_to_the_same_place(length: int, stride: int, seed: int) -> None:
    """At 10 Hz a rate v moves by v / 10 a frame: the mean rate over a longer step must move as far."""
    rate = np.random.default_rng(seed).normal(size=(length, 1)).astype(np.float32)
    merged = accumulate_actions(np.hstack([rate, rate / 10]), ("velocity", "delta"), stride)
    frames = np.minimum(stride, length - np.arange(0, length, stride))
    np.testing.assert_allclose(merged[:, 0] * frames / 10, merged[:, 1], atol=1e-5)


SOURCES = ("lerobot v2", "lerobot v3", "rlds flat", "rlds dictionary")


def write_source(source: str, root: Path, actions: np.ndarray) -> str:
    """Write the actions; returns what `--action-kind` must say there."""
    if source.startswith("lerobot"):
        write_lerobot(root, {"2": "v2.1", "3": "v3.0"}[source[-1]], actions, list(NAMED))
        return ""
    if source == "rlds flat":
        write_rlds_action(root, {"": actions})
        return ",".join(NAMED.values())
    # TFDS allows no brackets in names.
    leaves = {name.split(" ")[0]: actions[:, dim] for dim, name in enumerate(NAMED)}
    leaves["terminate_episode"] = leaves["terminate_episode"].astype(bool)
    leaves["gripper_toggle"] = leaves["gripper_toggle"].astype(int)
    write_rlds_action(root, leaves)
    return "vx=velocity"


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=4)
@given(length=st.integers(9, 14), stride=st.integers(1, 5), seed=st.integers(0, 1000))
def test_no_source_loses_motion(
    source: str, length: int, stride: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Converted at a stride, or cut with that stride from a store of all frames: both equal the sums by hand."""
    folder, actions, kinds = tmp_path_factory.mktemp("set"), motion(length, seed), list(NAMED.values())
    option = write_source(source, folder / "set", actions)
    options = ConvertOptions(stride=stride, action_kind=option, source_fps=10.0 if "rlds" in source else None)
    wanted = expected(actions, kinds, stride)
    convert(folder / "set", folder / "thin", options)
    thin = open_store(folder / "thin").read(0)
    assert list(thin.action_kinds) == kinds
    np.testing.assert_allclose(thin.actions, wanted, atol=1e-5)
    convert(folder / "set", folder / "whole", replace(options, stride=1))
    whole = open_store(folder / "whole").read(0)
    np.testing.assert_array_equal(whole.actions, actions)
    frames = (length - 1) // stride + 1
    window = cut_window(whole, WindowSpec(frames=frames, stride=stride), 0, 0)
    np.testing.assert_allclose(window.actions, wanted[:frames], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_droid_at_a_stride_reaches_the_recorded_poses(stride: int, tmp_path: Path) -> None:
    write_droid(tmp_path / "set", [13])
    convert(tmp_path / "set", tmp_path / "store", ConvertOptions(stride=stride))
    episode = open_store(tmp_path / "store").read(0)
    states = droid_states(13)
    poses = np.concatenate([states[:, :3], np.unwrap(states[:, 3:6], axis=0)], axis=1)
    reached = poses[0] + np.cumsum(episode.actions[:, :6].astype(np.float64), axis=0)
    ends = np.minimum(np.arange(0, 13, stride) + stride, 12)
    np.testing.assert_allclose(reached, poses[ends], atol=1e-5)
    np.testing.assert_allclose(episode.actions[:, 6], states[ends, 6], atol=1e-6)


def test_a_one_shot_command_is_never_skipped() -> None:
    toggles = np.array([[0], [1], [0], [0], [-1], [0.01], [0], [0], [1], [-1], [0], [0]], np.float32)
    assert accumulate_actions(toggles, ("toggle",), 4).ravel().tolist() == [1, -1, -1]


@pytest.mark.parametrize("kind", ["unknown", "delta_rotation"])
def test_what_cannot_be_combined_is_refused_and_kept_whole(kind: str) -> None:
    actions = motion(8, 0)[:, :2]
    np.testing.assert_array_equal(accumulate_actions(actions, ("delta", kind), 1), actions)
    with pytest.raises(UserError, match="elbow") as refused:
        accumulate_actions(actions, ("delta", kind), 2, names=("delta_x", "elbow"))
    assert "\n" not in refused.value.line()
    assert ("--action-kind" in refused.value.line()) == (kind == "unknown")


# --- angles -----------------------------------------------------------------------------------------------------


def turning(length: int, turn: float, low: float) -> tuple[np.ndarray, np.ndarray]:
    """An angle that turns twice: as it is, and wrapped to [low, low + turn)."""
    whole = np.linspace(0, 2 * turn, length)
    return whole, (whole - low) % turn + low


def episode_of(column: np.ndarray, name: str, kind: str) -> Episode:
    made = made_episode(0, 0, length=len(column))
    return replace(
        made, actions=column[:, None].astype(np.float32), action_names=(name,), action_kinds=(kind,)
    )


@pytest.mark.parametrize("kind", ["angle", "absolute", "unknown"])
@pytest.mark.parametrize(
    ("turn", "low"), [(2 * np.pi, -np.pi), (2 * np.pi, 0.0), (360.0, -180.0), (360.0, 0.0)]
)
def test_angles_are_unwrapped_also_where_nobody_declared_them(kind: str, turn: float, low: float) -> None:
    whole, wrapped = turning(40, turn, low)
    out = unwrap_episode(episode_of(wrapped, "wrist", kind))
    np.testing.assert_allclose(np.diff(out.actions[:, 0]), np.diff(whole), rtol=1e-3)
    assert out.action_kinds == ("angle",)
    assert out.provenance["unwrapped"] == ["wrist"]
    thin = stride_episode(out, 3)
    np.testing.assert_allclose(np.diff(thin.actions[:, 0])[:-1], 3 * np.diff(whole)[0], rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_that_are_no_wrapped_angles_stay_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for column in (
        rng.uniform(-np.pi, np.pi, 40),
        rng.normal(size=40),
        rng.choice([-1.0, 1.0], 40),
        rng.choice([-np.pi, np.pi], 40),
        np.cumsum(rng.normal(scale=0.1, size=40)),
    ):
        for kind in ("absolute", "unknown", "delta", "velocity", "hold"):
            episode = episode_of(column, "q", kind)
            assert unwrap_episode(episode) is episode


def test_a_fast_angle_goes_the_shorter_way_where_its_unit_is_known() -> None:
    """Two thirds of half a turn a frame: only the unit tells the jumps from motion of another unit."""
    whole = np.arange(12) * 2.1
    wrapped = (whole + np.pi) % (2 * np.pi) - np.pi
    known = unwrap_episode(episode_of(wrapped, "yaw [rad]", "angle"))
    np.testing.assert_allclose(np.diff(known.actions[:, 0]), 2.1, rtol=1e-5)
    unclear = episode_of(wrapped, "yaw", "angle")
    assert unwrap_episode(unclear) is unclear


def test_kinds_survive_the_store(tmp_path: Path) -> None:
    episode = made_episode(0, 0)
    write_store([episode], tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert store.read(0).action_kinds == ("delta", "delta", "hold")
    assert store.statistics["actions"]["3"]["kinds"] == ["delta", "delta", "hold"]
