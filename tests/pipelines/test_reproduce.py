"""Experiments made again: arms differ in what they say and in nothing else; gains are paired; what is done stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from align_kinds import LORA, with_denoiser
from judged_job import make_judged_job

from roboalign_ray.config.loading import load_job
from roboalign_ray.evaluation.judge_scores import JudgedResult
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.evaluate import reproduce
from roboalign_ray.pipelines.evaluate.reproduce import (
    ALIGNMENT_ARMS,
    HACKING_ARMS,
    alignment_table,
    changed,
    hacking_table,
    run_alignment,
    run_hacking,
    total_gain,
)


def leaves(tree, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("arms", [ALIGNMENT_ARMS, HACKING_ARMS], ids=["alignment", "hacking"])
def test_an_arm_changes_what_it_names(arms) -> None:
    profile = load_job("reproduce", ())
    before = leaves(profile.model_dump())
    for change in arms.values():
        after = leaves(changed(profile, change, seed=7).model_dump())
        assert after.keys() == before.keys()
        differing = {key for key in after if after[key] != before[key]}
        assert differing <= {*change, "seed"}
        assert all(after[key] == value for key, value in {**change, "seed": 7}.items())


def test_gains_are_means_over_seeds_of_changes_in_the_same_windows() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 1, (12, 2, 6))
    arms = [JudgedResult("j", base + 0.05), JudgedResult("j", base + 0.15)]
    told = total_gain(JudgedResult("j", base), arms)
    assert told["gain"]["mean"] == pytest.approx(0.6)
    assert told["gain"]["low"] == pytest.approx(0.6)
    assert told["gain_percent"] == pytest.approx(100 * 0.6 / base.sum(-1).mean())
    assert told["per_seed"] == pytest.approx([base.sum(-1).mean() + 0.3, base.sum(-1).mean() + 0.9])


def test_the_command_asks_for_as_many_runs_as_it_was_told(monkeypatch, tmp_path: Path) -> None:
    asked: dict = {}
    monkeypatch.setattr(reproduce, "run_alignment", lambda config, out, **how: asked.update(how, out=out))
    words = ["reproduce", "alignment", "--seeds", "2", "--single", "4", "--out", str(tmp_path), "--json"]
    assert run(words) == 0
    assert (asked["seeds"], asked["single"], asked["out"]) == (2, 4, tmp_path)


def test_the_experiment_of_a_diffusion_model_has_a_profile_of_its_own(
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reproduce, "run_alignment", lambda config, out, **_: asked.append(config.name))
    words = ["reproduce", "alignment", "--out", str(tmp_path), "--json"]
    for more in ((), ("--model", "token"), ("--model", "diffusion")):
        assert run([*words, *more]) == 0
    assert asked == ["reproduce", "reproduce", "reproduce_diffusion"]
    assert run([*words, "mine.yaml", "--model", "diffusion"]) == 2
    assert "error: --model: a profile says which world model it is of" in capsys.readouterr().err
    config = changed(load_job("reproduce_diffusion"), ALIGNMENT_ARMS["judged"], 0)
    assert (config.world_model_kind, config.alignment.objective) == ("diffusion", "diffusion_nft")
    assert config.reward.needs_judge


def test_motion_stands_beside_every_judges_scores() -> None:
    scores = np.broadcast_to(0.5 * maxima(), (4, 2, 6)).copy()
    moving, still = np.full((4, 2), 0.8), np.full((4, 2), 0.1)
    moving[0, 0] = np.nan  # nothing real moves
    base = JudgedResult("j", scores, motion=moving)
    told = total_gain(
        base, [JudgedResult("j", scores, motion=moving), JudgedResult("j", scores, motion=still)]
    )
    assert told["motion"] == pytest.approx(0.45)
    result = {
        "base": {"j": {**reproduce._summary(base)}},
        "arms": {"judged": {"j": told}},
        "seeds": {"judged": 2},
    }
    lines = alignment_table(result).splitlines()
    assert [line.split("|")[-2].strip() for line in lines if line.startswith("| ")] == [
        "motion (real: 1)",
        "0.80",
        "0.45",
    ]
    del result["base"]["j"]["motion"]  # a file of before motion was measured
    assert "| |  |" in alignment_table(result)


def judged_diffusion_job(folder: Path):
    alignment = {
        "objective": "diffusion_nft",
        "updates": 2,
        "evaluate_every": 2,
        "learning_rate": 1e-2,
        "diffusion": {"lora": LORA, "clips_per_rollout": 2},
    }
    job = make_judged_job(
        folder,
        alignment=alignment,
        rollout={"refresh": {"policy": "none"}, "diffusion": {"action_noise": 0.3}},
        evaluation={"judged_windows": 3, "judged_samples": 2},
    )
    return with_denoiser(job, folder)


def test_a_diffusion_model_is_judged_on_held_out_windows(tmp_path: Path) -> None:
    """Scores of every judge, and motion against the model's own rollouts by hand; kept in one file."""
    job = judged_diffusion_job(tmp_path / "job")
    judges, model = reproduce._Judges(job), Path(job.world_model_weights)
    found = reproduce._judged(judges, model, tmp_path / "base.json", True)
    assert list(found) == ["student", "privileged"]
    bench, panel = judges()
    seeds = np.random.default_rng([job.seed, 3]).integers(2**31, size=(3, 2)).tolist()
    rollouts = bench.model(model).rollout(list(panel.prompts), [tuple(row) for row in seeds])
    for number, (source, rollout) in enumerate(zip(panel.sources, rollouts, strict=True)):
        real = np.abs(np.diff(source.window.frames.astype(float), axis=0)).mean()
        for sample, frames in enumerate(bench.decoder.decode(rollout)[:, :, 0]):
            clip = np.concatenate([source.window.frames[:1], frames]).astype(float)
            share = np.abs(np.diff(clip, axis=0)).mean() / real
            for result in found.values():
                assert np.isfinite(result.scores).all()
                assert result.motion[number, sample] == pytest.approx(share)
    again = reproduce._judged(judges, tmp_path / "gone", tmp_path / "base.json", True)
    np.testing.assert_array_equal(again["student"].motion, found["student"].motion)


@pytest.mark.slow
def test_a_diffusion_model_is_aligned_on_the_judge_and_on_single_metrics(ray_cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run_alignment(judged_diffusion_job(tmp_path / "job"), out, seeds=1, quiet=True)
    assert told["seeds"] == {"judged": 1, "LPIPS only": 1, "SSIM only": 1}
    for arm in told["arms"].values():
        for name, row in arm.items():
            assert row["motion"] > 0
            assert row["total"] != told["base"][name]["total"]
            assert np.isfinite(row["gain_percent"])
    assert (out / "judged-0" / "judge" / "events.jsonl").is_file()


@pytest.mark.slow
def test_alignment_on_three_rewards_is_made_once(ray_cluster, tmp_path: Path) -> None:
    job = make_judged_job(
        tmp_path / "job",
        alignment={"updates": 2, "evaluate_every": 2},
        evaluation={"judged_windows": 3, "judged_samples": 2},
    )
    out = tmp_path / "out"
    told = run_alignment(job, out, seeds=2, quiet=True)
    assert told["seeds"] == {"judged": 2, "LPIPS only": 1, "SSIM only": 1}
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"judged-0", "judged-1", "LPIPS_only-0", "SSIM_only-0"}
    assert (out / "judged-0" / "judge" / "events.jsonl").is_file()
    assert not (out / "SSIM_only-0" / "judge").exists()
    table = (out / "alignment.md").read_text()
    assert table == alignment_table(told)
    assert table.count("| nothing (base) |") == len(told["base"]) == 2
    written = {path: path.stat().st_mtime_ns for path in out.glob("*-*")}
    assert run_alignment(job, out, seeds=2, quiet=True) == told
    assert {path: path.stat().st_mtime_ns for path in out.glob("*-*")} == written
    # A judge that comes later scores what the models, as they are, roll out.
    models = {path: path.stat().st_mtime_ns for path in out.glob("*/aligned/*")}
    teacher = load_job("demo").teacher
    judges = job.evaluation.model_copy(update={"judges": ("student", "vlm", "privileged")})
    job = job.model_copy(update={"evaluation": judges, "teacher": teacher})
    later = run_alignment(job, out, seeds=2, quiet=True)
    assert list(later["base"]) == ["student", "VLM teacher", "privileged"]
    assert all(later["base"][name] == summary for name, summary in told["base"].items())
    assert 0 < later["base"]["VLM teacher"]["total"] < 10
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/aligned/*")} == models != {}
    # So are more runs of an arm: those before them stay.
    more = run_alignment(job, out, seeds=1, single=2, quiet=True)
    assert more["seeds"] == {"judged": 1, "LPIPS only": 2, "SSIM only": 2}
    assert {path: path.stat().st_mtime_ns for path in models} == models
    first, second = more["arms"]["SSIM only"]["student"]["per_seed"]
    assert first == told["arms"]["SSIM only"]["student"]["total"] != second


@pytest.mark.slow
def test_hacking_compares_a_frozen_with_a_re_distilled_student(ray_cluster, tmp_path: Path) -> None:
    job = make_judged_job(tmp_path / "job", alignment={"updates": 4, "evaluate_every": 2})
    out = tmp_path / "out"
    told = run_hacking(job, out, quiet=True)
    versions = {
        arm: {
            score["scorer_version"]
            for line in (out / f"{arm}-0" / "rollouts.jsonl").read_text().splitlines()
            for score in json.loads(line)["scores"]
        }
        for arm in HACKING_ARMS
    }
    assert versions == {"frozen": {1}, "re-distilled": {1, 2}}
    for arm in HACKING_ARMS:  # alarms live on audits, whether or not anything is relabelled
        lines = (out / f"{arm}-0" / "judge" / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        audits = [e["update"] for e in events if e["event"] == "audit" and e["of"] == "judge"]
        assert audits == [1, 2, 3, 4], arm
    for runs in told["arms"].values():
        assert runs[0]["teacher"]["updates"] == [0, 2, 4]
    assert (out / "hacking.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "hacking.md").read_text() == hacking_table(told)


def test_without_a_teacher_nothing_can_be_compared(tmp_path: Path) -> None:
    config = load_job("hacking", ["judge.relabel.teacher=none"])
    with pytest.raises(UserError, match="without a teacher, nothing shows that the student is weak"):
        run_hacking(config, tmp_path, quiet=True)


def test_the_witness_of_an_experiment_labels_nothing_in_it() -> None:
    for profile in ("reproduce", "reproduce_diffusion", "hacking"):
        config = load_job(profile)
        assert config.judge.relabel.teacher == "privileged"
        assert "vlm" in config.evaluation.judges
