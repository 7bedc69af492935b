"""What a run may be resumed with: settings that its result does not rest on, and no others."""

from __future__ import annotations

import json

import pytest

from roboalign_ray.config.loading import known_paths, load_job
from roboalign_ray.config.resume import ALIGNMENT
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.align.settings_check import check_same_job, keep_settings

PROFILE = "reproduce"  # measurement labels: nobody asks the teacher
SETTINGS = ("alignment.updates=40", "alignment.evaluate_every=10", "evaluation.judges=[student, privileged]")
BEGUN = load_job(PROFILE, SETTINGS).model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("alignment.updates=30", "alignment.updates: 40 -> 30"),
        ("alignment.evaluate_every=7", "alignment.evaluate_every: 10 -> 7"),
        ("evaluation.judges=[student]", 'evaluation.judges: ["student", "privileged"] -> ["student"]'),
        ("telemetry.wandb=mine", "telemetry.wandb: null -> mine"),
        ("cluster.rollout.deadline_s=77", None),
        ("asynchrony.liveness.stall_s=77", "asynchrony.liveness.stall_s: 120.0 -> 77.0"),
        ("pretraining.steps=3", None),
        ("teacher.model=another", None),
    ],
)
def test_what_changes_no_result_may_change(change: str, line: str | None) -> None:
    [found] = check_same_job(BEGUN, load_job(PROFILE, [*SETTINGS, change]), "run")
    assert found.path == change.split("=")[0]
    assert line in (None, found.line())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("alignment.learning_rate=1e-6", "-> 1e-06"),
        ("alignment.kl_coefficient=0.5", "-> 0.5"),
        ("asynchrony.staleness=3", "-> 3"),
        ("judge.relabel.teacher=vlm", "-> vlm"),
        ("rollout.horizon=5", "-> 5"),
        ("seed=1", "0 -> 1"),
    ],
)
def test_what_changes_a_result_may_not_and_is_named_with_both_values(change: str, line: str) -> None:
    path = change.split("=")[0]
    with pytest.raises(UserError, match=rf"^run: the run began with another value of {path};") as refused:
        check_same_job(BEGUN, load_job(PROFILE, [*SETTINGS, change]), "run")
    assert refused.value.details.startswith(f"{path}: ")
    assert refused.value.details.endswith(line)


def test_many_differences_are_counted() -> None:
    """Only those that may not change, by name, and no longer list than a screen."""
    settings = [
        "alignment.clip=0.3",
        "alignment.clip_norm=0.3",
        "alignment.discount=0.3",
        "alignment.epochs=9",
    ]
    settings += ["alignment.weight_decay=0.3", "alignment.kl_coefficient=0.3", "alignment.dual_clip=9"]
    settings += ["alignment.kl_estimator=k1", "alignment.group_size=99", "seed=3"]
    with pytest.raises(UserError) as refused:
        check_same_job(BEGUN, load_job(PROFILE, [*SETTINGS, *settings, "alignment.updates=30"]), "run")
    *lines, last = refused.value.details.splitlines()
    assert len(lines) == 8
    assert last == f"and {len(settings) - 8} more"
    assert "alignment.updates" not in refused.value.details
    assert f"and {len(settings) - 3} more" in refused.value.line()


def test_a_setting_that_an_older_run_did_not_know_counts_as_its_default() -> None:
    older = json.loads(json.dumps(BEGUN))
    del older["alignment"]["discount"]
    assert check_same_job(older, load_job(PROFILE, SETTINGS), "run") == []
    with pytest.raises(UserError) as refused:
        check_same_job(older, load_job(PROFILE, [*SETTINGS, "alignment.discount=0.25"]), "run")
    assert refused.value.details == "alignment.discount: (not known then) -> 0.25"


def test_every_setting_that_may_change_exists_and_has_a_reason() -> None:
    assert set(ALIGNMENT) <= set(known_paths())
    assert all(ALIGNMENT.values())


def test_a_folder_keeps_the_settings_of_what_is_made_in_it(tmp_path) -> None:
    folder, labels = tmp_path / "judge", tmp_path / "judge" / "labels"

    def keep(*changes: str) -> None:
        keep_settings(folder, load_job(PROFILE, changes), check_same_job, made=list(folder.glob("labels")))

    keep("judge.weights=one")
    keep("judge.weights=another")  # nothing was made with the ones before
    labels.mkdir()
    keep("judge.weights=another", "alignment.updates=30")
    with pytest.raises(UserError, match=r"judge: the run began with another value of judge\.weights"):
        keep("judge.weights=one")
    (folder / "settings.json").unlink()
    with pytest.raises(UserError, match="unknown settings"):
        keep("judge.weights=another")


def test_a_teacher_that_labels_must_stay_but_may_be_run_otherwise() -> None:
    labels = "judge.relabel.teacher=vlm"
    begun = load_job(PROFILE, [labels]).model_dump(mode="json")
    check_same_job(begun, load_job(PROFILE, [labels, "teacher.engine.memory_share=0.5"]), "run")
    with pytest.raises(UserError, match=r"another value of teacher\.samples"):
        check_same_job(begun, load_job(PROFILE, [labels, "teacher.samples=1"]), "run")
