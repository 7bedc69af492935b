"""Alignment on a student's scores: tried first, audited, relabelled on schedule, resumed, refused when it fails."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from judged_job import make_judged_job

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.rubric import names
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.registry import StudentRegistry
from roboalign_ray.pipelines.align import job as align
from roboalign_ray.pipelines.align.job import run_align
from roboalign_ray.pipelines.align.loop import AlignmentLoop
from roboalign_ray.pipelines.align.replay import run_replay
from roboalign_ray.pipelines.align.settings_check import check_same_job, keep_settings
from roboalign_ray.world_model.token.transformer import load_pretrained


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    return make_judged_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """Where the finished run copied its checkpoints to."""
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def finished(ray_cluster, job, copies, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return run_align(changed(job, "alignment", checkpoints=f"file://{copies}"), out, quiet=True), out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(job: JobConfig, section: str, **values) -> JobConfig:
    return job.model_copy(update={section: getattr(job, section).model_copy(update=values)})


def assert_same_model(actual: Path, expected: Path) -> None:
    """Bit for bit."""
    wanted = load_pretrained(expected)[0].state_dict()
    for name, value in load_pretrained(actual)[0].state_dict().items():
        np.testing.assert_array_equal(value.numpy(), wanted[name].numpy(), err_msg=name)


def test_every_score_names_the_student_that_gave_it(finished):
    _, out = finished
    journal = lines(out / "rollouts.jsonl")
    versions = {
        update: {
            score["scorer_version"]
            for line in journal
            if line["update"] == update
            for score in line["scores"]
        }
        for update in range(4)
    }
    # Relabelled after updates 2 and 4: what was scored before has the version before.
    assert versions == {0: {1}, 1: {1}, 2: {2}, 3: {2}}
    for line in journal:
        for score in line["scores"]:
            assert score["total"] == pytest.approx(sum(score[name] for name in names()), abs=1e-5)


def test_labels_are_kept_by_round_and_each_student_stays(finished, job):
    _, out = finished
    labels = DistillationSet(out / "judge" / "labels")
    assert sorted(set(labels.rounds.tolist())) == [1, 2]
    assert len(set(labels.ids)) == len(labels.ids)
    first = labels.read(0)
    assert first.annotator == "privileged"
    assert first.frames.shape[0] == job.rollout.horizon + 1
    assert first.provenance["teacher"]["rationale"].startswith("Measured shares")
    registry = StudentRegistry(out / "judge" / "versions")
    assert registry.newest() == 3
    start = Student.load(job.judge.weights)
    for name, value in registry.load(1).state_dict().items():
        np.testing.assert_array_equal(value.numpy(), start.state_dict()[name].numpy())
    moved = [
        float((registry.load(2).state_dict()[name] - value).abs().max())
        for name, value in start.state_dict().items()
    ]
    assert max(moved) > 0


def test_audits_and_relabellings_are_told(finished):
    result, out = finished
    events = lines(out / "judge" / "events.jsonl")
    assert [e["update"] for e in events if e["event"] == "relabelled"] == [2, 4]
    assert [e["cause"] for e in events if e["event"] == "relabelled"] == ["interval", "interval"]
    # A relabelling on the interval's end is an audit as well, of all the rollouts that it labels.
    assert [e["update"] for e in events if e["event"] == "audit" and e["of"] == "judge"] == [1, 2, 3, 4]
    assert [e["update"] for e in events if e["event"] == "audit" and e["of"] == "held_out"] == [0, 2, 4]
    for side in ("student", "teacher"):
        steps, totals = result.curves[f"held_out/{side}_total"]
        assert steps.tolist() == [0, 2, 4]
        parts = sum(result.curves[f"held_out/{side}/{name}"][1] for name in names())
        np.testing.assert_allclose(totals, parts, rtol=1e-6)
    assert result.curves["judge/version"][1].tolist() == [1, 1, 2, 2, 3]


@pytest.mark.slow
def test_a_vision_language_model_labels_and_says_why(ray_cluster, job, tmp_path):
    """The one inside the package, which is shown the rollouts alone."""
    relabel = job.judge.relabel.model_copy(update={"teacher": "vlm"})
    asked = changed(changed(job, "judge", relabel=relabel), "alignment", updates=2)
    run_align(asked.model_copy(update={"teacher": load_job("demo").teacher}), tmp_path / "out", quiet=True)
    labels = DistillationSet(tmp_path / "out" / "judge" / "labels")
    assert len(labels.ids) == job.judge.relabel.rollouts
    first = labels.read(0)
    assert first.annotator == "vlm/shipped"
    assert 0 < first.scores.sum() < 10
    assert first.provenance["teacher"]["rationale"]
    assert StudentRegistry(tmp_path / "out" / "judge" / "versions").newest() == 2


def test_a_run_is_made_again_with_the_students_that_scored_it(finished, job):
    _, out = finished
    result = run_replay(job, out, quiet=True)
    told = {row["versions"]: (row["groups"], row["equal"], row["gone"]) for row in result.rows()}
    # Version 0 is in the package's folder, 2 has a checkpoint; the others' weights are gone.
    assert told == {"0 0": (4, 4, 0), "1 1": (4, 0, 4), "2 2": (4, 4, 0), "3 3": (4, 0, 4)}


def test_a_resumed_run_asks_the_teacher_for_no_label_twice(ray_cluster, job, finished, tmp_path):
    """Set back to before its last relabelling: the labels are there, and so is the student that came of them."""
    result, before = finished
    out = tmp_path / "out"
    shutil.copytree(before, out)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    shutil.rmtree(out / "aligned")
    written = {path.name: path.stat().st_mtime_ns for path in (out / "judge" / "labels").iterdir()}
    again = run_align(job, out, resume=True, quiet=True)
    assert {p.name: p.stat().st_mtime_ns for p in (out / "judge" / "labels").iterdir()} == written
    assert StudentRegistry(out / "judge" / "versions").newest() == 3
    events = lines(out / "judge" / "events.jsonl")
    assert [e["update"] for e in events if e["event"] == "relabelled"] == [2, 4]
    assert_same_model(again.model, result.model)


@pytest.mark.slow
def test_a_run_whose_disk_is_gone_goes_on_with_the_student_of_its_checkpoint(
    ray_cluster, job, finished, copies, tmp_path
):
    """Labels and versions were not copied: the student that the checkpoint was written with scores on."""
    shutil.copytree(copies, tmp_path / "copies")
    (tmp_path / "copies" / "step-00000004.json").unlink()
    out = tmp_path / "out"
    moved = changed(job, "alignment", checkpoints=f"file://{tmp_path / 'copies'}")
    result = run_align(moved, out, resume=True, quiet=True)
    assert_same_model(result.model, finished[0].model)
    registry, before = StudentRegistry(out / "judge" / "versions"), finished[1] / "judge" / "versions"
    assert registry.newest() == 3
    assert registry.about(2) == StudentRegistry(before).about(2)
    scored = {score["scorer_version"] for line in lines(out / "rollouts.jsonl") for score in line["scores"]}
    assert scored == {2}
    assert set(DistillationSet(out / "judge" / "labels").rounds.tolist()) == {2}


@pytest.mark.slow
def test_a_run_that_ends_with_an_update_relabels_after_it_all_the_same(
    ray_cluster, job, finished, tmp_path, monkeypatch
):
    published, done = AlignmentLoop._published, []

    def counting(loop, scalars, weights):
        published(loop, scalars, weights)
        done.append(loop.version)

    @contextmanager
    def asked_after_two_updates():
        yield lambda: done[-1:] == [2]

    monkeypatch.setattr(AlignmentLoop, "_published", counting)
    with monkeypatch.context() as patch:
        patch.setattr(align, "interruptions", asked_after_two_updates)
        with pytest.raises(KeyboardInterrupt):
            run_align(changed(job, "alignment", checkpoint_every=1), tmp_path / "out", quiet=True)
    result = run_align(
        changed(job, "alignment", checkpoint_every=1), tmp_path / "out", resume=True, quiet=True
    )
    events = lines(tmp_path / "out" / "judge" / "events.jsonl")
    assert [e["update"] for e in events if e["event"] == "relabelled"] == [2, 4]
    assert [e["update"] for e in events if e["event"] == "audit" and e["of"] == "judge"] == [1, 2, 3, 4]
    assert_same_model(result.model, finished[0].model)


def test_what_another_run_left_is_not_taken_up(job, tmp_path):
    """It ended before its first checkpoint; its students and labels were made with other settings."""
    judge = tmp_path / "out" / "judge"
    keep_settings(judge, job, check_same_job, made=())
    StudentRegistry(judge / "versions").publish(Student.load(job.judge.weights))
    other = job.judge.model_copy(update={"weights": "shipped"})
    with pytest.raises(UserError, match=r"judge: the run began with another value of judge\.weights"):
        run_align(job.model_copy(update={"judge": other}), tmp_path / "out", quiet=True)


def test_a_student_that_fails_the_gate_ends_the_job_before_any_rollout(ray_cluster, job, tmp_path):
    gate = job.judge.gate.model_copy(update={"trials": ("reverse",)})
    with pytest.raises(UserError, match=r"the reward gate is closed.*reverse") as closed:
        run_align(changed(job, "judge", gate=gate), tmp_path / "out", quiet=True)
    assert "| trial | clips | exact |" in closed.value.details
    assert not (tmp_path / "out" / "rollouts.jsonl").exists()
    assert not (tmp_path / "out" / "judge" / "versions").exists()


def test_a_missing_student_is_told_before_ray_starts(job, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"no student here: student.safetensors is missing.*roboalign distill"
    ):
        run_align(changed(job, "judge", weights=str(tmp_path / "empty")), tmp_path / "out", quiet=True)


@pytest.mark.slow
def test_stale_runs_relabel_beside_the_loop(ray_cluster, job, tmp_path):
    off_policy = job.asynchrony.off_policy.model_copy(update={"correction": "decoupled"})
    stale = changed(job, "asynchrony", staleness=1, groups_per_call=1, off_policy=off_policy)
    out = tmp_path / "out"
    result = run_align(changed(stale, "alignment", updates=80, evaluate_every=80), out, quiet=True)
    assert result.counts["groups"] == 320
    journal = lines(out / "rollouts.jsonl")
    used = [score["scorer_version"] for line in journal for score in line["scores"]]
    assert set(used) <= set(range(1, (StudentRegistry(out / "judge" / "versions").newest() or 0) + 1))
    assert any(event["event"] == "relabelled" for event in lines(out / "judge" / "events.jsonl"))
