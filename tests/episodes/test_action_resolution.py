"""What actions are is taken from unambiguous names, confirmed layouts and the data; else it is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from action_sets import write_lerobot, write_rlds_action
from episode_files import example_bytes, frame_record
from made_episodes import made_episode
from refusals import refused

from roboalign_ray.config import EpisodesConfig, JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.action_kinds import ActionFindings
from roboalign_ray.episodes.action_names import flat_names, kind_from_name
from roboalign_ray.episodes.action_option import declare
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.sources.rlds import RldsSource
from roboalign_ray.episodes.sources.tfrecord import parse_example, read_records
from roboalign_ray.episodes.store import EpisodeStore, open_store, write_store
from roboalign_ray.episodes.windows import WindowSpec, held_out_windows
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert
from roboalign_ray.pipelines.train.world_model import run_pretrain

T = 24


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["delta_x", "dx", "d_x", "deltaX", "rel_x", "relative_y", "x_delta", "world_vector[0]"], "delta"),
        (["delta_x [m]", "x [m/step]", "delta_ee.x", "action.delta_ee.z", "base_displacement"], "delta"),
        (["delta_roll", "dyaw", "rotation_delta[2]", "rel_pitch [rad]", "delta_theta"], "delta_angle"),
        (["eef_vel", "vx", "joint_velocity_3", "x [m/s]", "yaw [rad/s]", "speed", "theta.vel"], "velocity"),
        (["elbow.pos", "joint_position[3]", "abs_x", "qpos_1"], "absolute"),
        (["wrist_roll.pos", "abs_yaw"], "angle"),
        (["gripper.pos", "gripper_position"], "hold"),
        (["gripper_toggle"], "toggle"),
        (["terminate_episode", "is_terminal", "done"], "event"),
        (["delta_qx", "rel_quat[0]", "delta_rot6d[1]"], "delta_rotation"),
        (["x", "joint_0", "motor_3", "gripper", "roll", "a", "action[0]", "qx", "delta_vel", "adx"], None),
    ],
)
def test_only_names_with_one_meaning_declare_a_kind(names: list[str], kind: str | None) -> None:
    assert {name: kind_from_name(name) for name in names} == dict.fromkeys(names, kind)


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (["x", "y"], ("x", "y")),
        ([["x", "y"]], ("x", "y")),
        ({"motors": ["x", "y"]}, ("x", "y")),
        ({"y": 1, "x": 0}, ("x", "y")),
        ({"1": "y", "0": "x"}, ("x", "y")),
        ({"delta_ee": ["x"], "gripper": ["g"]}, ("delta_ee.x", "gripper.g")),
        (None, ()),
        (["x"], ()),
        ({"x": 0, "y": 7}, ()),
        ({"motors": None}, ()),
    ],
)
def test_names_are_flattened_in_the_order_of_the_numbers(names: object, flat: tuple[str, ...]) -> None:
    assert flat_names(names, 2) == flat


def moved(actions: np.ndarray, folder: Path, stride: int = 4, kinds: str = "") -> float:
    """What the first dimension holds after the first four frames."""
    convert(folder / "set", folder / f"store{stride}", ConvertOptions(stride=stride, action_kind=kinds))
    return float(open_store(folder / f"store{stride}").read(0).actions[0, 0])


def steps(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.01, size=(T, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "names", [{"motors": ["x", "y", "z"]}, None, ["x", "y"], ["joint_0", "joint_1", "joint_2"]]
)
def test_the_state_tells_increments_from_targets(names: object, tmp_path: Path) -> None:
    """State at t + 1 is state at t plus the action; or it is the action."""
    walk = steps()
    path = np.concatenate([np.zeros((1, 3)), np.cumsum(walk, axis=0)]).astype(np.float32) + 0.3
    write_lerobot(tmp_path / "a" / "set", "v2.1", walk, names, path[:-1])
    assert moved(walk, tmp_path / "a") == pytest.approx(walk[:4, 0].sum(), abs=1e-6)
    write_lerobot(tmp_path / "b" / "set", "v3.0", path[1:], names, path[:-1])
    assert moved(path[1:], tmp_path / "b") == pytest.approx(path[4, 0], abs=1e-6)


@pytest.mark.parametrize("state", [None, "unrelated", "scaled"])
def test_without_evidence_a_stride_is_refused_before_anything_is_written(
    state: str | None, tmp_path: Path
) -> None:
    walk = steps()
    states = None if state is None else steps(7) if state == "unrelated" else 0.05 * np.cumsum(walk, axis=0)
    write_lerobot(tmp_path / "set", "v2.1", walk, ["x", "y", "z"], states)
    with pytest.raises(UserError, match=r"x, y, z are.*--action-kind 'x=KIND") as refused:
        moved(walk, tmp_path)
    assert "\n" not in refused.value.line()
    assert not (tmp_path / "store4").exists()
    assert moved(walk, tmp_path, stride=1) == walk[0, 0]
    assert moved(walk, tmp_path, kinds="x=delta,y=delta,z=delta") == pytest.approx(
        walk[:4, 0].sum(), abs=1e-6
    )


def test_a_name_that_the_data_contradict_is_asked_for(tmp_path: Path) -> None:
    path = np.cumsum(steps(), axis=0) + 0.3
    write_lerobot(tmp_path / "set", "v2.1", path[1:], ["delta_x", "delta_y", "delta_z"], path[:-1])
    findings = LeRobotSource(tmp_path / "set").action_findings
    assert findings.kinds == ("unknown",) * 3
    assert "its values follow the state itself" in findings.reasons[0]


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_turning_increments_are_told_from_targets_in_any_unit(scale: float, tmp_path: Path) -> None:
    """Radians or degrees: a small increment beside a large angle is no target."""
    walk = np.random.default_rng(1).normal(scale=0.1 * scale, size=(T, 2)).astype(np.float32)
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(walk, axis=0)]).astype(np.float32) + 0.5 * scale
    write_lerobot(tmp_path / "a", "v2.1", walk, ["roll", "yaw"], path[:-1])
    assert LeRobotSource(tmp_path / "a").action_findings.kinds == ("delta_angle",) * 2
    write_lerobot(tmp_path / "b", "v2.1", path[1:], ["roll", "yaw"], path[:-1])
    assert LeRobotSource(tmp_path / "b").action_findings.kinds == ("angle",) * 2


def gripper(values: list[float]) -> tuple[str, str]:
    from roboalign_ray.episodes.action_evidence import ActionSample, gripper_kind

    kind, reason = gripper_kind([ActionSample(np.array(values, np.float32)[:, None])], 0)
    return kind or "unknown", reason


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 0, 1, 1, 1, 0, 0], "hold"),
        ([-1, -1, 1, 1, 1, -1], "hold"),
        ([0.1, 0.2, 0.5, 0.4, 0.0], "hold"),
        ([1, 1, 1, 1], "hold"),
        ([0, 0, -1, 0, 0, 1, 0], "unknown"),
        ([0, 0, 1, 0, 0, 1, 0], "unknown"),
        ([1, 1, 2, 1, 1, 0, 1], "unknown"),  # close, stay, open
        ([0, 0, 0.5, 1, 2, 1, 0], "hold"),
    ],
)
def test_a_gripper_that_may_be_toggled_is_asked_for(values: list[float], kind: str) -> None:
    assert gripper(values)[0] == kind


# --- RLDS: published layouts are believed only where the data agree ----------------------------------------------


def pose_walk(order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> tuple[np.ndarray, np.ndarray]:
    """Actions float32 [T, 7] that move a state [T, 7] whose dimensions stand in another order."""
    rng = np.random.default_rng(3)
    walk = rng.normal(scale=0.01, size=(T, 6)) * np.array([1, 2, 3, 8, 9, 10])
    state = np.concatenate([np.zeros((1, 6)), np.cumsum(walk[:-1], axis=0)])
    grip = np.repeat([1.0, 0.0], T // 2)[:, None]
    return (
        np.hstack([walk, grip]).astype(np.float32),
        np.hstack([state[:, list(order)], 1 - grip]).astype(np.float32),
    )


def test_bridge_is_known_where_its_state_moves_as_it_says(tmp_path: Path) -> None:
    actions, state = pose_walk()
    write_rlds_action(tmp_path, {"": actions}, "bridge_dataset", state)
    findings = RldsSource(tmp_path).action_findings
    assert findings.names[0] == "delta_x [m]"
    assert findings.kinds == (*("delta",) * 3, *("delta_angle",) * 3, "hold")


@pytest.mark.parametrize("change", ["rotation first", "absolute", "wide gripper", "no state"])
def test_bridge_in_another_layout_gets_no_names_by_its_length(change: str, tmp_path: Path) -> None:
    actions, state = pose_walk((3, 4, 5, 0, 1, 2) if change == "rotation first" else (0, 1, 2, 3, 4, 5))
    if change == "absolute":
        actions[:, :6] = state[:, :6]
    if change == "wide gripper":
        actions[:, 6] *= 3
    write_rlds_action(tmp_path, {"": actions}, "bridge_dataset", None if change == "no state" else state)
    findings = RldsSource(tmp_path).action_findings
    assert findings.names == tuple(f"action[{d}]" for d in range(7))
    assert "do not confirm bridge's layout" in " ".join(findings.lines())
    assert not set(findings.kinds[:6]) & {"delta"} or change == "wide gripper"


def test_a_dictionary_keeps_its_leaves_their_order_and_its_gripper(tmp_path: Path) -> None:
    """Open X-Embodiment's older Bridge: rotation stands before translation, the gripper is a truth value."""
    opened = np.arange(T) < T // 2
    leaves = {
        "open_gripper": opened,
        "rotation_delta": np.tile(np.float32([0.1, 0.2, 0.3]), (T, 1)),
        "terminate_episode": np.float32(np.arange(T) == 17),
        "world_vector": np.tile(np.float32([1, 2, 3]), (T, 1)),
    }
    for name, prefixes in (
        ("bridge", ("delta_x", "delta_roll")),
        ("fractal20220817_data", ("world_v", "rotation")),
    ):
        write_rlds_action(tmp_path / name / "set", leaves, name)
        convert(tmp_path / name / "set", tmp_path / name / "store", ConvertOptions(stride=4))
        episode = open_store(tmp_path / name / "store").read(0)
        first = dict(zip(episode.action_names, episode.actions.T, strict=True))
        by_start = {start: next(v for n, v in first.items() if n.startswith(start)) for start in prefixes}
        np.testing.assert_allclose(by_start[prefixes[0]], 4.0)
        np.testing.assert_allclose(by_start[prefixes[1]], 0.4, rtol=1e-6)
        assert first["open_gripper"].tolist() == opened[3::4].tolist()
        assert first["terminate_episode"].tolist() == [0, 0, 0, 0, 1, 0]


def test_rt1_s_gripper_is_one_shot(tmp_path: Path) -> None:
    closing = np.zeros((T, 1), np.float32)
    closing[[5, 14]] = [[1], [-1]]
    write_rlds_action(tmp_path, {"gripper_closedness_action": closing}, "fractal20220817_data")
    assert RldsSource(tmp_path).action_findings.kinds == ("toggle",)


def test_rt1_s_mode_stays_one_of_several(tmp_path: Path) -> None:
    """terminate_episode is (terminate, go on, arm or base): after skipped frames exactly one of them is 1."""
    mode = np.tile(np.int32([0, 1, 0]), (T, 1))
    mode[-1] = [1, 0, 0]
    write_rlds_action(tmp_path / "set", {"terminate_episode": mode}, "fractal20220817_data")
    convert(tmp_path / "set", tmp_path / "store", ConvertOptions(stride=4))
    kept = open_store(tmp_path / "store").read(0).actions
    assert kept.sum(axis=1).tolist() == [1] * len(kept)
    assert kept[-1].tolist() == [1, 0, 0]


def test_what_the_data_contradict_in_part_is_not_believed_in_the_rest(tmp_path: Path) -> None:
    """Positions under a name of increments; one of them hardly moves, so that its numbers alone show nothing."""
    state = np.cumsum(np.random.default_rng(1).normal(scale=0.01, size=(T, 3)), axis=0)
    state[:, 1] = 0.0
    positions = np.vstack([state[1:], state[-1:]]).astype(np.float32)
    write_rlds_action(tmp_path, {"world_vector": positions}, state=state.astype(np.float32))
    assert RldsSource(tmp_path, fps=5.0).action_findings.kinds == ("unknown",) * 3


@pytest.mark.parametrize("size", [4, 9])
def test_rotations_that_do_not_add_up_are_no_angles_whatever_their_leaf_is_called(
    size: int, tmp_path: Path
) -> None:
    half = np.random.default_rng(0).normal(scale=0.02, size=(T, size - 1))
    turns = np.hstack([half, np.sqrt(1 - (half**2).sum(1, keepdims=True))]).astype(np.float32)
    write_rlds_action(tmp_path, {"rotation_delta": turns}, "fractal20220817_data")
    assert set(RldsSource(tmp_path).action_findings.kinds) == {"delta_rotation"}


@pytest.mark.parametrize("value", [1.0, -1.0, None])
def test_the_number_behind_a_pose_is_no_increment_where_it_looks_like_a_gripper(
    value: float | None, tmp_path: Path
) -> None:
    poses = np.random.default_rng(0).normal(scale=0.01, size=(T, 6))
    grip = np.full(T, value) if value else np.where(np.arange(T) < 8, -1, 1)
    leaf = np.hstack([poses, grip[:, None]]).astype(np.float32)
    write_rlds_action(tmp_path, {"rel_actions_world": leaf})
    assert RldsSource(tmp_path, fps=5.0).action_findings.kinds == (*("delta",) * 6, "unknown")


@pytest.mark.parametrize("grip", [1.0, 0.99, -1.0])
def test_small_increments_beside_a_closed_gripper_are_no_quaternion(grip: float, tmp_path: Path) -> None:
    poses = np.random.default_rng(0).normal(scale=0.01, size=(T, 3))
    actions = np.hstack([poses, np.full((T, 1), grip)]).astype(np.float32)
    write_lerobot(tmp_path, "v2.1", actions, ["delta_x", "delta_y", "delta_z", "gripper"])
    assert LeRobotSource(tmp_path).action_findings.kinds == ("delta", "delta", "delta", "hold")


@pytest.mark.parametrize("values", [(-1, 1), (0, 1)])
def test_a_gripper_called_an_increment_that_holds_two_values_is_asked_for(
    values: tuple[int, int], tmp_path: Path
) -> None:
    actions = np.repeat(values, T // 2).astype(np.float32)[:, None]
    write_lerobot(tmp_path, "v2.1", actions, ["delta_gripper"])
    assert LeRobotSource(tmp_path).action_findings.kinds == ("unknown",)


@pytest.mark.parametrize("feature", [{"classLabel": {"numClasses": "2"}}, {"text": {}}, {"boundingBox": {}}])
def test_no_leaf_of_an_action_is_lost_without_a_word(feature: dict, tmp_path: Path) -> None:
    write_rlds_action(tmp_path, {"x": np.ones(T, np.float32), "gripper": np.arange(T) % 2})
    tree = json.loads((tmp_path / "features.json").read_text())
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["action"]["featuresDict"]["features"]["gripper"] = feature
    (tmp_path / "features.json").write_text(json.dumps(tree))
    source = RldsSource(tmp_path, fps=5.0)
    (episode,) = source.episodes()
    if "classLabel" in feature:
        assert dict(zip(episode.action_names, episode.actions.T.tolist(), strict=True))["gripper"] == [
            t % 2 for t in range(T)
        ]
    else:
        assert [note for note in source.notes if "steps/action/gripper" in note and "left out" in note]


def test_an_action_called_actions_is_read_and_another_name_is_told(tmp_path: Path) -> None:
    write_rlds_action(tmp_path, {"": np.ones((T, 2), np.float32)})
    path, (shard,) = tmp_path / "features.json", tmp_path.glob("*.tfrecord*")
    example = parse_example(next(read_records(shard)))
    for name in ("actions", "command"):
        path.write_text(path.read_text().replace('"action"', f'"{name}"').replace('"actions"', f'"{name}"'))
        renamed = {
            key.replace("steps/action", f"steps/{name}"): list(value) for key, value in example.items()
        }
        shard.write_bytes(frame_record(example_bytes(renamed)))
        if name == "actions":
            (episode,) = RldsSource(tmp_path, fps=5.0).episodes()
            assert episode.action_names == ("action[0]", "action[1]")
        else:
            with pytest.raises(UserError, match=r"steps/actions; its steps hold .*steps/command"):
                RldsSource(tmp_path, fps=5.0)


def test_actions_beside_the_one_that_is_read_are_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path, "v2.1", np.ones((T, 2)), ["delta_x", "delta_y"])
    path = tmp_path / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action.wrist"] = {"dtype": "float32", "shape": [1]}
    path.write_text(json.dumps(info))
    assert "action.wrist: beside 'action', left out" in LeRobotSource(tmp_path).action_findings.lines()


def test_names_that_a_terminal_acts_on_are_stored_and_told_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lerobot(tmp_path / "set", "v2.1", np.ones((T, 2)), ["a\x1b[31m", "b\nc"])
    assert LeRobotSource(tmp_path / "set").action_findings.names == ("a\\x1b[31m", "b\\nc")
    assert "\x1b" not in refused(
        ["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "out"), "--stride", "2"],
        tmp_path,
        capsys,
    )


def test_an_action_of_absurd_width_is_set_aside(tmp_path: Path) -> None:
    write_rlds_action(tmp_path, {"": np.zeros((2, 5000), np.float32)})
    source = RldsSource(tmp_path, fps=5.0)
    assert source.action_findings.names == ()
    (item,) = source.episodes()
    assert "5000 numbers" in item.reason


# --- quaternions ------------------------------------------------------------------------------------------------


def test_quaternion_increments_are_never_summed(tmp_path: Path) -> None:
    half = np.random.default_rng(0).normal(scale=0.02, size=(T, 3))
    turns = np.hstack([half, np.sqrt(1 - (half**2).sum(1, keepdims=True))]).astype(np.float32)
    for names in (["delta_qx", "delta_qy", "delta_qz", "delta_qw"], None):
        folder = tmp_path / str(names is None)
        write_lerobot(folder / "set", "v2.1", turns, names)
        with pytest.raises(UserError):
            moved(turns, folder)
        with pytest.raises(UserError, match="do not add up"):
            moved(turns, folder, kinds="delta*4")
        assert moved(turns, folder, stride=1) == turns[0, 0]


# --- the option -------------------------------------------------------------------------------------------------

FINDINGS = ActionFindings(
    ("x [m]", "arm[0]", "arm[1]", "grip [-1 open, 1 closed]"), ("unknown",) * 4, ("",) * 4
)


@pytest.mark.parametrize(
    "text",
    [
        "delta,angle*2,hold",
        "x=delta,arm=angle,grip=hold",
        "X=delta, arm[0]=angle, arm[1]=angle, grip [-1 open, 1 closed]=hold",
        "*=angle,x=delta,gr*=hold",
    ],
)
def test_kinds_are_declared_by_name_or_in_order(text: str) -> None:
    assert declare(FINDINGS, text).kinds == ("delta", "angle", "angle", "hold")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("delta*3", "3 kinds for 4 dimensions"),
        ("y=delta", "no dimension of the action is named 'y'"),
        ("x=dleta", "did you mean 'delta'"),
        ("x=unknown", "no kind of action"),
        ("x=delta,hold", "mixes"),
        ("delta*many,hold", "no KIND"),
        ("delta*999999999", "no KIND"),
        (" , ", "declares nothing"),
    ],
)
def test_a_declaration_that_does_not_fit_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        declare(FINDINGS, text)
    assert "\n" not in refused.value.line()


# --- stores -----------------------------------------------------------------------------------------------------


def older_store(folder: Path, names: tuple[str, ...]) -> EpisodeStore:
    """A store as it was written before kinds were stored."""
    episodes = [replace(made_episode(0, start), action_names=names) for start in range(8)]
    write_store(episodes, folder, held_out_fraction=0.4)
    for shard in folder.glob("*.parquet"):
        table = pq.read_table(shard).drop_columns(["action_kinds"])
        none = pa.array([[]] * len(table), pa.list_(pa.int32()))
        pq.write_table(table.append_column("angle_dims", none), shard)
    statistics = json.loads((folder / "statistics.json").read_text())
    del statistics["actions"]["3"]["kinds"]
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return open_store(folder)


def test_older_stores_say_what_their_names_say(tmp_path: Path) -> None:
    known = older_store(tmp_path / "a", ("delta_x [m]", "delta_yaw [rad]", "elbow.pos"))
    assert known.read(0).action_kinds == ("delta", "delta_angle", "absolute")
    assert len(held_out_windows(known, WindowSpec(frames=3, stride=2), 2)) == 2
    assert open_store("shipped").read(0).action_kinds == ("delta", "delta", "delta", "hold")


def test_a_store_of_unknown_kinds_is_read_whole_and_refused_at_a_stride(tmp_path: Path) -> None:
    store = older_store(tmp_path / "s", ("x", "y", "elbow.pos"))
    assert fitted_action_card(store, EpisodesConfig(held_out_fraction=0.4)).dims == 3
    config = EpisodesConfig(frame_stride=2, held_out_fraction=0.4, store=str(store.path))
    with pytest.raises(UserError, match="x, y are"):
        fitted_action_card(store, config)
    with pytest.raises(UserError, match="x, y are"):
        held_out_windows(store, WindowSpec(frames=2, stride=2), 1)
    with pytest.raises(UserError, match=r"roboalign episodes declare .*--action-kind 'x=KIND,y=KIND'"):
        run_pretrain(JobConfig(episodes=config), tmp_path / "out", "tokenizer", quiet=True)


def test_declared_kinds_hold_for_windows_and_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = older_store(tmp_path / "s", ("x", "y", "elbow.pos"))
    assert (
        run(["episodes", "declare", str(store.path), "--action-kind", "x=delta", "--action-kind", "y=delta"])
        == 0
    )
    again = open_store(store.path)
    assert again.read(0).action_kinds == ("delta", "delta", "absolute")
    found = fitted_action_card(again, EpisodesConfig(frame_stride=2, held_out_fraction=0.4)).statistics
    assert found is not None
    assert (found.min[1], found.max[1]) == (1.0, 1.0)  # two increments of 0.5
    assert run(["episodes", "inspect", str(store.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.split("\n{", 1)[-1].join(["{", ""]))
    assert shown["actions"]["3"]["kinds"] == ["delta", "delta", "absolute"]


def test_the_command_line_asks_in_one_line_and_tells_what_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lerobot(tmp_path / "set", "v2.1", steps(), ["x", "delta_y", "z"])
    command = ["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "store"), "--quiet", "--fps", "5"]
    assert run(command) == 2
    assert "it is not known what x, z are" in capsys.readouterr().err
    assert run([*command, "--action-kind", "x=absolute,z=velocity"]) == 0
    told = capsys.readouterr().out
    assert "actions: delta_y: delta (its name says so)" in told
    assert "actions: x: absolute (declared by --action-kind)" in told
