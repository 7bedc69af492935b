"""Distillation from end to end at toy size: trained, calibrated, measured, refused by the gate, then published."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from test_student import TINY

from pipelines.distill import run_distill
from pipelines.feed import Feed
from pipelines.pair_streaming import PairStream
from roboalign_ray.config import JobConfig, StudentConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.assessment import gate_clips
from roboalign_ray.judge.clips import prepare_clips
from roboalign_ray.judge.labels import DistillationSet, LabelledPairs, ReplaySampler
from roboalign_ray.judge.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.registry import StudentRegistry
from roboalign_ray.judge.rubric import maxima

GROUPS = 40


def bright_or_dark(number: int, kind: str, share: float) -> JudgedPair:
    """Bright clips are real and score full marks; dark ones show other actions and score little."""
    level = 40 + int(160 * share)
    frames = np.random.default_rng(number).integers(level, level + 30, (4, 16, 16, 3), dtype=np.uint8)
    task = ("push the button", "open the drawer")[number % 2]
    scores = (share * maxima()).astype(np.float32)
    return JudgedPair(f"{number}/{kind}", f"group/{number}", frames, 5.0, task, scores, "toy", kind)


def make_job(trials: list[str]) -> JobConfig:
    student = StudentConfig.small(**TINY).model_dump()
    distillation = {
        "steps": 60,
        "pairs_per_step": 8,
        "warmup_steps": 2,
        "learning_rate": 3e-3,
        "ema_decay": 0.8,
        "held_out_fraction": 0.5,
        "calibration": "affine",
        "checkpoint_every": 40,
        "bootstrap_resamples": 20,
    }
    return JobConfig.model_validate(
        {
            "judge": {"student": student, "distillation": distillation, "gate": {"trials": trials}},
            "cluster": {"trainer": {"num_cpus": 1, "threads": 1, "max_restarts": 0}},
        }
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folders of a store and of a set with one later round."""
    folder = tmp_path_factory.mktemp("pairs")
    made = (
        bright_or_dark(n, kind, share)
        for n in range(GROUPS)
        for kind, share in (("real", 1.0), ("degraded/wrong_actions", 0.1))
    )
    write_pairs(made, folder / "store")
    DistillationSet(folder / "set").append(1, [bright_or_dark(n, "rollout/swr", 0.5) for n in range(12)])
    return [folder / "store", folder / "set"]


def test_the_feed_hands_out_the_samplers_pairs_and_resumes(pairs, ray_cluster) -> None:
    config = make_job(["reverse"]).judge
    arguments = {"paths": pairs, "student": config.student, "settings": config.distillation, "seed": 3}
    feed = Feed(PairStream(**arguments))
    batches = list(islice(feed, 2))
    store = LabelledPairs(pairs)
    train = store.split("train", 0.5)
    sampler = ReplaySampler(store.rounds[train], 8, config.distillation.replay_ratio, 3)
    for step, batch in enumerate(batches):
        expected = [store.read(int(n)) for n in train[sampler.positions(step)]]
        np.testing.assert_array_equal(
            batch["clips"], prepare_clips([p.frames for p in expected], config.student)
        )
        assert batch["instruction"] == [pair.instruction for pair in expected]
        np.testing.assert_array_equal(batch["scores"], np.stack([pair.scores for pair in expected]))
    resumed = Feed(PairStream(**arguments))
    resumed.load_state_dict(feed.state_dict())
    positions = train[sampler.positions(2)]
    np.testing.assert_array_equal(next(iter(resumed))["scores"], store.scores[positions])
    with pytest.raises(UserError, match="saved position"):
        Feed(PairStream(**{**arguments, "seed": 4})).load_state_dict(feed.state_dict())


def test_from_pairs_to_a_published_version(pairs, ray_cluster, tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"gate is closed.*reverse .* FAILED"):
        run_distill(make_job(["reverse"]), pairs, out, quiet=True)  # noise backwards is noise
    assert "FAILED" in (out / "gate.md").read_text()
    assert not (out / "versions").exists()
    weights = (out / "student" / "student.safetensors").stat().st_mtime_ns
    summary = run_distill(make_job(["wrong_actions"]), pairs, out, quiet=True)
    assert (out / "student" / "student.safetensors").stat().st_mtime_ns == weights  # not trained again
    assert summary["version"] == 1
    assert run_distill(make_job(["wrong_actions"]), pairs, out, quiet=True)["version"] == 1
    student = StudentRegistry(out / "versions").load()
    assert student.version == 1
    bright, dark = (bright_or_dark(99, "real", share).frames for share in (1.0, 0.1))
    totals = student.score([bright, dark], ["push the button"] * 2).totals
    assert totals[0] - totals[1] > 4
    judges = {judge["judge"]: judge["rows"][-1] for judge in summary["agreement"]}
    assert set(judges) == {"student", "student, instruction hidden", "pixel L1", "constant mean"}
    assert judges["student"]["mae"]["value"] < judges["constant mean"]["mae"]["value"]
    assert json.loads((out / "distillation.json").read_text())["gate"]["open"] is True


def test_gate_clips_take_turns_between_instructions(pairs) -> None:
    store = LabelledPairs(pairs)
    clips = gate_clips(store, np.arange(len(store)), 6)
    assert [clip.instruction for clip in clips] == ["push the button", "open the drawer"] * 3
    assert all(clip.wrong_actions is not None and clip.wrong_actions.mean() < 90 for clip in clips)
    assert all(clip.frames.mean() > 180 for clip in clips)


def test_bad_material_is_told_before_anything_starts(pairs, tmp_path) -> None:
    write_pairs([bright_or_dark(0, "real", 1.0)], tmp_path / "one")
    with pytest.raises(UserError, match="no judged pair in the"):
        run_distill(make_job(["reverse"]), [tmp_path / "one"], tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="no student judge here"):
        run_distill(make_job(["reverse"]), pairs, tmp_path / "run", start=tmp_path, quiet=True)
    assert not (tmp_path / "run").exists()
