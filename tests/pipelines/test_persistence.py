"""The persistence experiment: arms get equal terms and differ in their history alone; what is complete stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_diffusion_job import make_diffusion_job

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.evaluation.results import MetricCurves
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.telemetry.metrics import read_curves
from roboalign_ray.metrics.frame_metrics import FRAME_METRICS
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.evaluate import persistence
from roboalign_ray.pipelines.evaluate.persistence import (
    ARMS,
    BASE,
    REINFORCED,
    STILL,
    SUPERVISED_ARMS,
    Measured,
    clips_per_step,
    fine_tuning,
    load_measured,
    optimizer_steps,
    run_persistence,
    save_measured,
)
from roboalign_ray.pipelines.evaluate.persistence_report import rivals
from roboalign_ray.pipelines.preflight.job import Preflight, find_fault
from roboalign_ray.world_model.diffusion.files import load_denoiser

COMMAND = ["roboalign", "reproduce", "persistence"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return make_diffusion_job(tmp_path_factory.mktemp("persistence"))


def test_the_shipped_profile_gives_all_arms_equal_terms() -> None:
    config = load_job("persistence")
    assert (optimizer_steps(config), clips_per_step(config)) == (60, 6 * 8 * 4)
    assert config.evaluation.horizon >= 2 * config.rollout.horizon
    for own_history in SUPERVISED_ARMS.values():
        training = fine_tuning(config, own_history, 5, Path("base")).diffusion.training
        assert training.steps == 60
        assert training.windows_per_step * training.clips_per_window == 6 * 8 * 4
        assert training.clips_per_window == config.rollout.horizon
        assert (training.own_history, training.start) == (own_history, "base")


def test_terms_follow_the_alignment(job: JobConfig) -> None:
    alignment = job.alignment.model_copy(update={"updates": 6, "minibatch_prompts": 2, "epochs": 3})
    changed = job.model_copy(update={"alignment": alignment})
    assert optimizer_steps(changed) == 6 * 3 * 2
    assert clips_per_step(changed) == 2 * 4 * 1  # two groups of four samples, each of one clip of one frame
    branching = job.rollout.branching.model_copy(update={"most": 0})
    plain = job.model_copy(update={"rollout": job.rollout.model_copy(update={"branching": branching})})
    assert clips_per_step(plain) == 4 * 4 * job.rollout.horizon


def test_own_histories_are_the_only_difference_between_the_supervised_arms(job: JobConfig) -> None:
    forced, own = (
        fine_tuning(job, share, 1, Path("base")).model_dump() for share in SUPERVISED_ARMS.values()
    )
    assert forced["diffusion"]["training"].pop("own_history") == 0
    assert own["diffusion"]["training"].pop("own_history") == 1
    assert forced == own


def test_who_is_compared_with_whom() -> None:
    assert rivals([BASE, *ARMS, STILL]) == [
        (STILL, BASE),
        *((BASE, arm) for arm in ARMS),
        ("teacher-forced", REINFORCED),
        ("self-rollout, supervised", REINFORCED),
    ]


def test_measured_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    views = {
        view: MetricCurves(
            {name: rng.random((3, 5)) for name in FRAME_METRICS}, rng.random(3), rng.random(3), 50
        )
        for view in ("front", "wrist/left")
    }
    frames = rng.integers(0, 256, (2, 5, 2, 4, 4, 3), dtype=np.uint8)
    save_measured(Measured(MetricCurves.over(views), frames), tmp_path / "a.npz")
    found = load_measured(tmp_path / "a.npz", 50)
    np.testing.assert_array_equal(found.frames, frames)
    assert list(found.metrics.views) == list(views)
    for view, curves in views.items():
        np.testing.assert_array_equal(found.metrics.views[view].per_frame["lpips"], curves.per_frame["lpips"])
        np.testing.assert_array_equal(found.metrics.views[view].motion, curves.motion)
    np.savez(tmp_path / "b.npz", frames=frames, **{"front/psnr": np.zeros((3, 5))})
    with pytest.raises(
        UserError, match=r"b\.npz: cannot be read as figures of held-out windows \(no 'front/"
    ):
        load_measured(tmp_path / "b.npz", 50)


def test_a_job_of_another_kind_or_with_broken_windows_is_refused(job: JobConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this job is about one of kind 'token'"):
        run_persistence(load_job("demo"), tmp_path / "out", command=COMMAND)
    horizon = job.model_copy(update={"rollout": job.rollout.model_copy(update={"horizon": 7})})
    with pytest.raises(UserError, match="16 clips an optimizer step are no whole number of windows of 7"):
        run_persistence(horizon, tmp_path / "out", command=COMMAND, quiet=True)
    objective = job.alignment.model_copy(update={"objective": "grpo"})
    fault = find_fault(Preflight("persistence", job.model_copy(update={"alignment": objective})))
    assert fault is not None
    assert "'grpo' trains world models of kind 'token'" in fault.line()


def test_the_command_hands_over_what_it_was_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict = {}
    monkeypatch.setattr(persistence, "run_persistence", lambda config, out, **how: asked.update(how, out=out))
    assert run(["reproduce", "persistence", "--seeds", "2", "--out", str(tmp_path), "--json"]) == 0
    assert (asked["seeds"], asked["out"]) == (2, tmp_path)


@pytest.mark.slow
def test_arms_are_trained_measured_and_made_once(
    ray_cluster: None, job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    told = run_persistence(job, out, command=COMMAND, seeds=1, quiet=True)
    assert list(told["methods"]) == [BASE, *ARMS, STILL]
    assert (told["optimizer_steps"], told["clips_per_step"], told["seeds"]) == (2, 16, 1)
    assert (len(told["windows"]), told["horizon"], told["training_horizon"]) == (3, 8, 4)
    models = {
        arm: out
        / f"{arm.replace(',', '').replace(' ', '_')}-0"
        / ("aligned" if arm == REINFORCED else "world_model")
        for arm in ARMS
    }
    base = load_denoiser(Path(job.world_model_weights))[0].state_dict()
    weights = {arm: load_denoiser(folder)[0].state_dict() for arm, folder in models.items()}
    for arm in ARMS:
        assert any(not torch.equal(value, base[name]) for name, value in weights[arm].items()), arm
        assert len(told["methods"][arm]) == 1
        assert (
            told["methods"][arm][0]["front"]["mean"]["psnr"]
            != told["methods"][BASE][0]["front"]["mean"]["psnr"]
        )
    # Small steps of AdamW from the base: no weight has moved by more than both steps together.
    rate = job.diffusion.training.learning_rate
    for name, value in weights["teacher-forced"].items():
        assert (value - base[name]).abs().max() <= 2.5 * rate, name
    for arm in SUPERVISED_ARMS:
        curves = read_curves(models[arm].parent / "logs" / "world_model")
        assert curves["loss"][0].tolist() == [1, 2]
        assert np.isfinite(curves["psnr_own"][1]).all() == (SUPERVISED_ARMS[arm] == 1)
    still = told["methods"][STILL][0]["front"]
    assert set(still["per_window"]["motion"]) == {0.0}
    assert len(still["per_frame"]["lpips"]) == 8
    pair = told["pairs"][-2]
    assert (pair["rival"], pair["method"]) == ("teacher-forced", REINFORCED)
    values = [
        told["methods"][arm][0]["below"]["per_window"]["lpips"] for arm in ("teacher-forced", REINFORCED)
    ]
    won = sum(after < before for before, after in zip(*values, strict=True))
    assert pair["views"]["below"]["lpips"]["sign_test"]["wins"] == won
    assert {"freeze_rate", "motion"} <= pair["views"]["below"].keys()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 3
    for shown in (*ARMS, STILL, "PSNR, dB ↑, below", "roboalign reproduce persistence"):
        assert shown in page, shown
    assert "| self-rollout, RL against base | below | LPIPS |" in (out / "persistence.md").read_text()

    # As if killed while the last arm was measured: nothing is trained again, and only that arm is measured.
    (out / "self-rollout_RL-0.npz").unlink()
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    for trains in ("run_align", "run_pretrain"):
        monkeypatch.setattr(persistence, trains, lambda *a, **k: pytest.fail("trained again"))
    again = run_persistence(job, out, command=COMMAND, seeds=1, quiet=True)
    assert again == json.loads(json.dumps(told))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    other = job.model_copy(update={"alignment": job.alignment.model_copy(update={"updates": 3})})
    with pytest.raises(UserError, match=r"another value of alignment\.updates"):
        run_persistence(other, out, command=COMMAND, seeds=1, quiet=True)
