"""Embodiment profiles: the shipped ones, what is refused, and fitting one to episodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import made_motion as made
import numpy as np
import pytest
import yaml

from roboalign_ray.config import ConfigError, EpisodesConfig, JobConfig
from roboalign_ray.config.paths import with_absolute_paths
from roboalign_ray.config.rewards import SHIPPED_EMBODIMENTS
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.sources.known_actions import CARTESIAN_DELTA_KINDS, CARTESIAN_DELTAS
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.inverse_dynamics.embodiment import (
    Embodiment,
    embodiment_of,
    load_embodiment,
    shipped_names,
)
from roboalign_ray.inverse_dynamics.profile_fit import fit_embodiment


@pytest.mark.parametrize("name", SHIPPED_EMBODIMENTS)
def test_every_shipped_profile_is_valid_and_gives_sources(name: str) -> None:
    profile = load_embodiment(name)
    assert profile.name == name
    assert not profile.fitted
    assert (profile.weight[list(profile.gripper)] == 0.2).all()
    assert (profile.weight[profile.moves] == 1).all()
    assert {"dt", "velocity", "acceleration", "weights"} <= set(profile.sources)


def test_the_config_knows_every_file() -> None:
    assert shipped_names() == sorted(SHIPPED_EMBODIMENTS)


def test_the_bimanual_profile_has_the_published_numbers() -> None:
    profile = load_embodiment("bimanual_eva")
    one_arm = [*(0.85 * np.array([3.1416, 3.4034, 3.1416, 3.927, 3.927, 3.927])), 2.0]
    np.testing.assert_allclose(profile.velocity, one_arm * 2, rtol=1e-5)
    assert profile.acceleration == (*(5.0,) * 6, 10.0) * 2
    assert profile.dt == pytest.approx(1 / 30)
    np.testing.assert_allclose(profile.jerk_limit[:7], [150] * 6 + [300])  # none stated: acceleration / dt


def card(names: tuple[str, ...], kinds: tuple, robot: str = "", **fields: Any) -> ActionCard:
    return ActionCard.make(names, kinds, embodiments=[robot], **fields)


def test_a_robot_finds_its_profile_by_the_card_of_its_actions() -> None:
    droid = card(CARTESIAN_DELTAS, CARTESIAN_DELTA_KINDS, "franka")
    assert embodiment_of(droid, "here").name == "droid_franka"
    assert (
        embodiment_of(card(CARTESIAN_DELTAS, CARTESIAN_DELTA_KINDS, "WidowX"), "here").name == "bridge_widowx"
    )
    assert embodiment_of(action_card_of(open_store("shipped")), "here").name == "metaworld_sawyer"


def test_a_card_of_other_actions_is_refused_in_one_line() -> None:
    profile = load_embodiment("droid_franka")
    for wrong, told in (
        (
            card(CARTESIAN_DELTAS[:3], CARTESIAN_DELTA_KINDS[:3], "franka"),
            "actions have 3 dimensions, the profile",
        ),
        (
            card(("delta_x [mm]", *CARTESIAN_DELTAS[1:]), CARTESIAN_DELTA_KINDS, "franka"),
            r"'delta_x \[mm\]', in the",
        ),
        (
            card(("yaw [m]", *CARTESIAN_DELTAS[1:]), CARTESIAN_DELTA_KINDS, "franka"),
            r"action 0 is 'yaw \[m\]'",
        ),
        (
            card(CARTESIAN_DELTAS, CARTESIAN_DELTA_KINDS, "ur5"),
            "the robot is ur5, the profile 'droid_franka' is of",
        ),
    ):
        with pytest.raises(UserError, match=told) as error:
            profile.check_card(wrong, "here")
        assert "\n" not in error.value.line()
        assert "roboalign executability fit" in error.value.line()
    unknown = card(tuple(f"action[{n}]" for n in range(7)), CARTESIAN_DELTA_KINDS)
    profile.check_card(unknown, "here")  # what is not known contradicts nothing


def test_an_unknown_robot_is_refused_with_the_command_that_fits_a_profile() -> None:
    with pytest.raises(
        UserError, match="no embodiment profile is of the robot ur5; name a profile, or fit one"
    ):
        embodiment_of(card(CARTESIAN_DELTAS, CARTESIAN_DELTA_KINDS, "ur5"), "here")
    with pytest.raises(UserError, match="robot of the actions is not known"):
        embodiment_of(card(CARTESIAN_DELTAS, CARTESIAN_DELTA_KINDS), "here")
    with pytest.raises(
        UserError, match=r"no embodiment profile 'droid_frank'; did you mean 'droid_franka'\?"
    ):
        load_embodiment("droid_frank")


VALID: dict[str, Any] = {
    "name": "arm",
    "dt": 0.1,
    "names": ["a", "b"],
    "units": ["rad", ""],
    "velocity": [1.0, 2.0],
    "acceleration": [3.0, 4.0],
    "gripper": [1],
    "sources": {"dt": "x", "velocity": "x", "acceleration": "x"},
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"velocity": None}, "velocity"),
        ({"velocity": [1.0]}, "1 numbers of velocity for 2 names"),
        ({"velocity": [1.0, -2.0]}, r"velocity\.1: Input should be greater than 0"),
        ({"acceleration": [0.0, 1.0]}, r"acceleration\.0: Input should be greater than 0"),
        ({"jerk": [1.0]}, "1 numbers of jerk for 2 names"),
        ({"dt": 0}, "dt: Input should be greater than 0"),
        ({"dt": float("inf")}, "dt"),
        ({"units": ["rad"]}, "1 numbers of units for 2 names"),
        ({"gripper": [2]}, "gripper index 2 is out of range, there are 2 dimensions"),
        ({"gripper": [-1]}, "gripper"),
        ({"position": [[1.0, 0.0], None]}, "a lowest value is not below its highest one"),
        ({"weights": [0, 0]}, "no dimension has a weight above 0"),
        ({"jerk": [1.0, 1.0]}, "sources: none for jerk"),
        ({"sources": {"dt": "x", "velocity": "x", "acceleration": "x", "speed": "x"}}, "'speed' is no field"),
        ({"maximum": 3}, "maximum"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_in_one_line(change: dict, told: str, tmp_path: Path) -> None:
    values = {key: value for key, value in {**VALID, **change}.items() if value is not None}
    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=told) as error:
        load_embodiment(path)
    assert str(path) in error.value.line()
    assert "\n" not in error.value.line()


def test_a_profile_file_that_is_missing_or_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_embodiment(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="no mapping"):
        load_embodiment(tmp_path / "list.yaml")


def test_a_profile_is_written_and_read_back(tmp_path: Path) -> None:
    profile = Embodiment.model_validate(
        VALID
        | {"position": [[-1, 1], None], "fitted": True}
        | {"sources": {**VALID["sources"], "position": "x"}}
    )
    profile.save(tmp_path / "arm.yaml", "two\nlines")
    assert (tmp_path / "arm.yaml").read_text().startswith("# two\n# lines\n")
    assert load_embodiment(tmp_path / "arm.yaml") == profile


def test_names_stay_names_and_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def absolute(name: str) -> str | None:
        reward = {"fidelity": {"weight": 1}, "executability": {"embodiment": name}}
        config = JobConfig.model_validate({"reward": reward})
        return with_absolute_paths(config).reward.executability.embodiment

    assert absolute("droid_franka") == "droid_franka"
    assert absolute("mine.yaml") == str(tmp_path / "mine.yaml")


def test_a_reward_without_model_or_calibration_is_refused() -> None:
    with pytest.raises(ConfigError, match="no inverse dynamics model is named"):
        JobConfig.model_validate({"reward": {"executability": {"weight": 1}}})
    with pytest.raises(
        ConfigError, match="not calibrated; measure it with: roboalign executability calibrate"
    ):
        JobConfig.model_validate({"reward": {"executability": {"weight": 1, "model": "x"}}})


# --- fitting ----------------------------------------------------------------------------------------------------------


def sinusoid_store(path: Path, *, amplitude: float = 0.3, hertz: float = 0.5, fps: float = 20.0) -> Path:
    """Episodes of one joint that swings, and of one that never moves; positions."""
    episodes = []
    for number in range(20):
        base = made.motion_episode(number, length=80)
        t = np.arange(80) / fps
        swing = amplitude * np.sin(2 * np.pi * hertz * t + number)
        actions = np.stack([swing, np.full(80, 0.7)], axis=1).astype(np.float32)
        episodes.append(
            replace(
                base,
                actions=actions,
                fps=fps,
                action_names=("shoulder [rad]", "gripper"),
                action_kinds=("absolute", "hold"),
            )
        )
    write_store(episodes, path)
    return path


def test_fitted_limits_are_those_of_a_sinusoid(tmp_path: Path) -> None:
    """Its velocity has the amplitude A w, its acceleration A w², its jerk A w³."""
    store = sinusoid_store(tmp_path / "store")
    profile = fit_embodiment(
        open_store(store), EpisodesConfig(store=str(store)), name="swing", percentile=100
    )
    omega = 2 * np.pi * 0.5
    assert profile.velocity[0] == pytest.approx(0.3 * omega, rel=0.01)
    assert profile.acceleration[0] == pytest.approx(0.3 * omega**2, rel=0.02)
    assert profile.jerk_limit[0] == pytest.approx(0.3 * omega**3, rel=0.03)
    assert profile.position is not None
    np.testing.assert_allclose(profile.position[0], (-0.3, 0.3), atol=0.005)
    assert profile.position[1] is None  # it never moves: no range, and no weight
    assert profile.weight.tolist() == [1, 0]
    assert profile.fitted
    assert profile.robots == ("square",)
    assert profile.dt == pytest.approx(1 / 20)
    lower = fit_embodiment(open_store(store), EpisodesConfig(store=str(store)), name="swing", percentile=50)
    assert lower.velocity[0] == pytest.approx(
        0.3 * omega * np.sin(np.pi / 4), rel=0.02
    )  # the median of |cos|


def test_a_fit_reads_the_store_with_the_jobs_stride(tmp_path: Path) -> None:
    store = sinusoid_store(tmp_path / "store")
    fitted = [
        fit_embodiment(
            open_store(store),
            EpisodesConfig(store=str(store), frame_stride=stride),
            name="swing",
            percentile=100,
        )
        for stride in (1, 2)
    ]
    assert fitted[1].dt == pytest.approx(2 * fitted[0].dt)
    assert fitted[1].velocity[0] == pytest.approx(
        fitted[0].velocity[0], rel=0.01
    )  # per second, not per frame


def test_what_cannot_be_fitted_is_refused(tmp_path: Path) -> None:
    unknown = [replace(made.motion_episode(n), action_kinds=("unknown", "delta")) for n in range(4)]
    write_store(unknown, tmp_path / "unknown")
    still = [replace(made.motion_episode(n), actions=np.zeros((24, 2), np.float32)) for n in range(4)]
    write_store(still, tmp_path / "still")
    short = [made.motion_episode(n, length=2) for n in range(4)]
    write_store(short, tmp_path / "short")
    for name, told in (
        ("unknown", "kind of action 0 is not known"),
        ("still", "no action ever changes"),
        ("short", "no episode of the train split has 4 frames"),
    ):
        store = open_store(tmp_path / name)
        with pytest.raises(UserError, match=told):
            fit_embodiment(store, EpisodesConfig(store=str(tmp_path / name)), name=name)
