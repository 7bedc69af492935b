"""Distillation from end to end at toy size: trained, calibrated, measured, refused by the gate, then published."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from tiny_student import TINY

from roboalign_ray.config import GateConfig, JobConfig, StudentConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import DistillationSet, LabelledPairs, PairCache, ReplaySampler
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.registry import StudentRegistry
from roboalign_ray.judge.validation.assessment import gate_clips, gate_positions
from roboalign_ray.pipelines.release.pack_assets import pack_judge, replayed_positions
from roboalign_ray.pipelines.train.pair_stream import PairBatches
from roboalign_ray.pipelines.train.student import run_distill

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


def batches_of(pairs, **changes) -> PairBatches:
    arguments = {"pairs_per_step": 8, "held_out_fraction": 0.5, "replay_ratio": 0.5, "seed": 3}
    return PairBatches(pairs, lambda drawn, step: {"pairs": drawn}, **{**arguments, **changes})


def test_batches_are_the_samplers_pairs_kept_or_not_and_resume(pairs) -> None:
    batches, kept = batches_of(pairs), batches_of(pairs, cache_gb=1e-5)  # room for a few pairs
    taken = [batch["pairs"] for batch in islice(batches, 3)]
    store = LabelledPairs(pairs)
    train = store.split("train", 0.5)
    sampler = ReplaySampler(store.rounds[train], 8, 0.5, 3)
    for step, (batch, same) in enumerate(zip(taken, islice(kept, 3), strict=True)):
        expected = [store.read(int(n)) for n in train[sampler.positions(step)]]
        assert [p.pair_id for p in batch] == [p.pair_id for p in expected]
        for pair, again, reference in zip(batch, same["pairs"], expected, strict=True):
            np.testing.assert_array_equal(pair.frames, reference.frames)
            np.testing.assert_array_equal(again.frames, reference.frames)
    resumed = batches_of(pairs)
    resumed.load_state_dict({**batches.state_dict(), "step": 2})
    assert [p.pair_id for p in next(iter(resumed))["pairs"]] == [p.pair_id for p in taken[2]]
    with pytest.raises(UserError, match="saved position"):
        batches_of(pairs, seed=4).load_state_dict(batches.state_dict())


def test_a_cache_reads_what_it_keeps_once_and_forgets_the_oldest(pairs) -> None:
    class Counting:
        path, ids = pairs[0], ["a", "b", "c"]

        def __init__(self) -> None:
            self.reads = []

        def read(self, number: int) -> JudgedPair:
            self.reads.append(number)
            return bright_or_dark(number, "real", 1.0)

    store, size = Counting(), bright_or_dark(0, "real", 1.0).frames.nbytes
    cache = PairCache(2 * size / 1e9)
    for number in (0, 1, 0, 1, 2, 1, 0):
        assert cache.read(store, number).pair_id == f"{number}/real"
    assert store.reads == [0, 1, 2, 0]


def test_from_pairs_to_a_published_version(pairs, ray_cluster, tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"gate is closed.*reverse"):
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
    sizes = pack_judge(out, pairs[0], tmp_path / "assets", make_job(["wrong_actions"]), 24)
    assert set(sizes) == {"student", "pairs"}
    packed = Student.load(tmp_path / "assets/student").score([bright, dark], ["push the button"] * 2)
    np.testing.assert_array_equal(packed.totals, totals)
    assert len(LabelledPairs([tmp_path / "assets/pairs"])) == 24
    strict = make_job(["wrong_actions"])
    strict = strict.model_copy(
        update={"judge": strict.judge.model_copy(update={"gate": GateConfig(smallest_gap=0.99)})}
    )
    stood = {path: path.read_bytes() for path in (tmp_path / "assets").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="gate is closed"):
        pack_judge(out, pairs[0], tmp_path / "assets", strict, 24)
    assert stood == {path: path.read_bytes() for path in (tmp_path / "assets").rglob("*") if path.is_file()}
    judges = {judge["judge"]: judge["rows"][-1] for judge in summary["agreement"]}
    assert set(judges) == {"student", "student, instruction hidden", "pixel L1", "constant mean"}
    assert judges["student"]["mae"]["value"] < judges["constant mean"]["mae"]["value"]
    assert json.loads((out / "distillation.json").read_text())["gate"]["open"] is True


def test_a_run_is_packed_with_the_pairs_it_needs(pairs, tmp_path) -> None:
    store, judge = LabelledPairs(pairs[:1]), make_job(["wrong_actions"]).judge
    judge = judge.model_copy(update={"gate": GateConfig(clips=4)})
    fraction = judge.distillation.held_out_fraction
    kept = replayed_positions(store, judge, 24)
    assert len(kept) == len(set(kept)) == 24
    held_out = store.split("held_out", fraction)
    assert len(set(held_out.tolist()) & set(kept)) == 12
    needed = [n for both in gate_positions(store, held_out, judge.gate) for n in both]
    assert set(needed) <= set(kept)
    assert {n for n in held_out if n in kept and store.kinds[n] == "real"} == set(needed[::2])
    untried = {n for n in held_out if store.kinds[n] == "real"} - set(needed)
    assert replayed_positions(store, judge, 10_000) == [n for n in range(len(store)) if n not in untried]
    with pytest.raises(UserError, match="no assessed student here"):
        pack_judge(tmp_path, pairs[0], tmp_path / "assets", make_job(["wrong_actions"]), 24)
    assert not (tmp_path / "assets").exists()


def test_gate_clips_take_turns_between_instructions(pairs) -> None:
    store = LabelledPairs(pairs)
    clips = gate_clips(store, np.arange(len(store)), GateConfig(clips=6))
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
