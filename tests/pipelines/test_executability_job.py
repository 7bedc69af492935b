"""Executability as jobs on tiny models: calibration, measurement, preflight, and alignment with it as a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_motion as made
import numpy as np
import pytest
import yaml
from tiny_denoiser import tiny_network, tiny_sizes
from tiny_job import SIZE, make_tiny_job

from roboalign_ray.config import JobConfig, NoiseConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.inverse_dynamics.embodiment import load_embodiment
from roboalign_ray.pipelines.align.job import run_align
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.evaluate.executability import (
    FIGURES,
    run_calibrate,
    run_measure_executability,
)
from roboalign_ray.pipelines.evaluate.job import run_evaluate
from roboalign_ray.pipelines.preflight.job import Preflight, find_fault
from roboalign_ray.world_model.diffusion.files import save_denoiser


@pytest.fixture(scope="module")
def inverse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the toy robot whose gate is open."""
    return made.saved_model(tmp_path_factory.mktemp("inverse") / "model", embodiment="toy")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, inverse: Path) -> JobConfig:
    """The tiny job, rewarded by executability alone."""
    reward = {
        "fidelity": {"weight": 0.0},
        "executability": {
            "weight": 1.0,
            "model": str(inverse),
            "embodiment": str(inverse / "square.yaml"),
            "p0": 1e5,
        },
    }
    return make_tiny_job(tmp_path_factory.mktemp("job"), reward=reward)


@pytest.fixture(scope="module")
def diffusion_job(job: JobConfig, tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """The same job with a denoiser."""
    card = ActionCard.load(Path(job.world_model_weights))
    assert card is not None
    folder = tmp_path_factory.mktemp("denoiser")
    sizes = tiny_sizes(views=1, height=SIZE, width=SIZE)
    save_denoiser(folder, tiny_network(sizes), NoiseConfig(steps=2), card)
    return changed(job, {"world_model_weights": str(folder), "rollout": {"refresh": {"policy": "none"}}})


def changed(job: JobConfig, changes: dict[str, Any]) -> JobConfig:
    return JobConfig.model_validate(merged(job.model_dump(), changes))


def merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


@pytest.mark.parametrize("kind", ["token", "diffusion"])
def test_the_penalty_is_calibrated_on_rollouts_of_either_world_model(
    kind: str, job: JobConfig, diffusion_job: JobConfig, tmp_path: Path
) -> None:
    config = job if kind == "token" else diffusion_job
    found = run_calibrate(config, tmp_path, groups=3, samples=2, quiet=True)
    assert found == json.loads((tmp_path / "calibration.json").read_text())
    assert found["p0"] == found["percentiles"]["50"] > 0
    assert (found["rollouts"], found["failed"]) == (6, 0)
    if kind == "token":  # what an untrained decoder draws cannot be read; a denoiser may copy its start frame
        assert found["trust"] < 0.5
    assert found["real"] > 0
    again = run_calibrate(
        changed(config, {"reward": {"executability": {"p0": 7.0}}}), tmp_path, groups=3, samples=2
    )
    assert again == found  # whatever p0 is configured


def test_held_out_rollouts_are_measured_beside_the_real_continuations(job: JobConfig, tmp_path: Path) -> None:
    found = run_measure_executability(job, tmp_path, groups=3, samples=2, quiet=True)
    assert found == json.loads((tmp_path / "executability.json").read_text())
    assert set(found["generated"]) == set(found["real"]) == set(found["difference"]) == set(FIGURES)
    for part in ("generated", "real", "difference"):
        for figure in found[part].values():
            assert figure["low"] <= figure["mean"] <= figure["high"]
    real, generated = found["real"], found["generated"]
    assert real["error"]["mean"] < 0.5 < generated["error"]["mean"]
    assert real["trust"]["mean"] > 0.9 > 0.5 > generated["trust"]["mean"]
    assert real["plausible"]["mean"] > generated["plausible"]["mean"] == 0
    assert generated["within_limits"]["mean"] > 0  # smooth motion is read from pictures that show none
    for name, figure in found["difference"].items():
        assert figure["mean"] == pytest.approx(generated[name]["mean"] - real[name]["mean"])
    assert (found["windows"], found["failed"]) == (3, 0)


def test_evaluate_measures_executability_where_a_model_is_named(
    diffusion_job: JobConfig, tmp_path: Path
) -> None:
    small = {"episodes": 2, "horizon": 4, "windows": [2], "judged_windows": 3, "judged_samples": 2}
    config = changed(diffusion_job, {"evaluation": small})
    found = run_evaluate(config, tmp_path / "evaluated", quiet=True)
    assert found["executability"] == run_measure_executability(config, None, groups=3, samples=2, quiet=True)
    assert found["headline"]["error"] == found["executability"]["generated"]["error"]["mean"]
    part = {"reward": {"fidelity": {"weight": 1}, "executability": {"weight": 0, "model": None}}}
    without = run_evaluate(changed(config, part), tmp_path / "without", quiet=True)
    assert "executability" not in without


def test_the_commands_print_what_they_measured(
    job: JobConfig, inverse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    plain = changed(
        job, {"reward": {"fidelity": {"weight": 1}, "executability": {"weight": 0, "model": None}}}
    )
    path.write_text(yaml.safe_dump(plain.model_dump(mode="json")))
    common = [
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(inverse),
        "--groups",
        "2",
        "--samples",
        "1",
    ]
    assert run(["executability", "calibrate", *common]) == 0
    shown = capsys.readouterr().out
    p0 = json.loads((tmp_path / "out" / "calibration.json").read_text())["p0"]
    assert f"--set reward.executability.p0={p0:.6g}" in shown
    assert run(["executability", "measure", *common]) == 0
    assert "| plausible: within limits, moving and readable |" in capsys.readouterr().out
    assert run(["executability", "calibrate", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "no inverse dynamics model is named" in capsys.readouterr().err


def test_profiles_are_listed_shown_and_fitted(
    job: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["executability", "profiles", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"droid_franka", "unitree_g1"}
    assert run(["executability", "profiles", "droid_franka"]) == 0
    assert "velocity: arm: [docs] Cartesian limits" in capsys.readouterr().out
    out = tmp_path / "toy.yaml"
    assert run(["executability", "fit", job.episodes.store, "--out", str(out), "--percentile", "100"]) == 0
    profile = load_embodiment(out)
    assert profile.fitted
    assert profile.velocity == (20.0, 20.0)  # two pixels a frame at 10 frames per second
    assert "fitted to episodes" in capsys.readouterr().out
    for wrong in ("toy.txt", "none/toy.yaml"):
        assert run(["executability", "fit", job.episodes.store, "--out", str(tmp_path / wrong)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rollout": {"horizon": 2}}, "rollouts of 2 frames are too short for executability, a jerk needs 3"),
        (
            {"rollout": {"horizons": {"shape": "uniform", "least": 1}}},
            "rollout.horizons.least: rollouts of 1 frames",
        ),
        ({"reward": {"executability": {"model": "/nowhere"}}}, "/nowhere: holds no inverse_dynamics.json"),
        ({"reward": {"executability": {"embodiment": None}}}, "no embodiment profile is of the robot toy"),
        ({"episodes": {"frame_stride": 2}}, "actions come at 5 Hz"),
    ],
)
def test_what_cannot_reward_is_refused_before_ray_starts(changes: dict, told: str, job: JobConfig) -> None:
    assert find_fault(Preflight("align", job)) is None
    fault = find_fault(Preflight("executability", changed(job, changes)))
    assert fault is not None
    assert told in fault.line()


@pytest.mark.slow
def test_alignment_learns_from_it_and_its_run_holds_the_calibration(
    job: JobConfig, tmp_path: Path, ray_cluster: None
) -> None:
    config = changed(
        job, {"alignment": {"updates": 1, "evaluate_every": 1}, "cluster": {"rollout": {"workers": 1}}}
    )
    result = run_align(config, tmp_path / "run", quiet=True)
    assert result.counts["failed_samples"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    scores = [score for line in lines for score in line["scores"]]
    assert len({score["total"] for score in scores}) > 1
    assert all(np.isfinite(score["total"]) for score in scores)
    assert {"limits", "following", "rank", "penalty", "motion"} <= set(scores[0])
    assert {"reward_limits", "reward_penalty", "reward_motion"} <= result.curves.keys()
    assert load_job(str(result.model / "profile.yaml")).reward.executability.p0 == 1e5


def test_a_world_model_of_another_view_is_refused(job: JobConfig, tmp_path: Path) -> None:
    folder = made.saved_model(tmp_path / "wrist", embodiment="toy")
    described = json.loads((folder / "inverse_dynamics.json").read_text())
    (folder / "inverse_dynamics.json").write_text(json.dumps({**described, "views": ["wrist"]}))
    changes = {"reward": {"executability": {"model": str(folder)}}, "episodes": {"view": "front"}}
    fault = find_fault(Preflight("executability", changed(job, changes)))
    assert isinstance(fault, UserError)
    assert "sees the view 'wrist', the world model predicts front" in fault.line()


def test_a_store_of_another_rate_than_the_inverse_dynamics_model_is_refused(
    job: JobConfig, tmp_path: Path
) -> None:
    folder = made.saved_model(tmp_path / "slow", embodiment="toy")
    made.motion_card("toy").model_copy(update={"rate": 5.0}).save(folder)
    fault = find_fault(
        Preflight("align", changed(job, {"reward": {"executability": {"model": str(folder)}}}))
    )
    assert fault is not None
    assert (
        "at 10 Hz, every frame in the store, at 5 Hz, every frame in the inverse dynamics model"
        in fault.line()
    )
