"""What a run may be resumed with: settings that its result does not rest on, and no others."""

from __future__ import annotations

import pytest

from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.align.run_state import check_same_job, keep_settings

PROFILE = "reproduce"  # measurement labels: nobody asks the teacher
BEGUN = load_job(PROFILE).model_dump(mode="json")


@pytest.mark.parametrize(
    "change",
    [
        "alignment.updates=30",
        "evaluation.judges=[student]",
        "cluster.rollout.workers=3",
        "teacher.model=another",
    ],
)
def test_what_changes_no_result_may_change(change: str) -> None:
    check_same_job(BEGUN, load_job(PROFILE, [change]), "run")


@pytest.mark.parametrize(
    ("change", "section"),
    [
        ("alignment.learning_rate=1e-6", "alignment"),
        ("judge.relabel.teacher=vlm", "judge"),
        ("seed=1", "seed"),
    ],
)
def test_what_changes_a_result_may_not(change: str, section: str) -> None:
    with pytest.raises(UserError, match=rf"^run: the run began with other settings in '{section}'"):
        check_same_job(BEGUN, load_job(PROFILE, [change]), "run")


def test_a_folder_keeps_the_settings_of_what_is_made_in_it(tmp_path) -> None:
    folder, labels = tmp_path / "judge", tmp_path / "judge" / "labels"

    def keep(*changes: str) -> None:
        keep_settings(folder, load_job(PROFILE, changes), check_same_job, made=list(folder.glob("labels")))

    keep("judge.weights=one")
    keep("judge.weights=another")  # nothing was made with the ones before
    labels.mkdir()
    keep("judge.weights=another", "alignment.updates=30")
    with pytest.raises(UserError, match="judge: the run began with other settings in 'judge'"):
        keep("judge.weights=one")
    (folder / "settings.json").unlink()
    with pytest.raises(UserError, match="unknown settings"):
        keep("judge.weights=another")


def test_a_teacher_that_labels_must_stay_but_may_be_run_otherwise() -> None:
    labels = "judge.relabel.teacher=vlm"
    begun = load_job(PROFILE, [labels]).model_dump(mode="json")
    check_same_job(begun, load_job(PROFILE, [labels, "teacher.engine.memory_share=0.5"]), "run")
    with pytest.raises(UserError, match="other settings in 'teacher'"):
        check_same_job(begun, load_job(PROFILE, [labels, "teacher.samples=1"]), "run")
