"""The judges inside the package: a student that the reward gate lets through as it is, and a teacher that sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipelines.weights import replay_folder, student_folder
from roboalign_ray.config.judge import TRIALS
from roboalign_ray.config.loading import load_job
from roboalign_ray.judge.assessment import gate_clips, try_student
from roboalign_ray.judge.bench.degradations import DEGRADATIONS, degrade
from roboalign_ray.judge.bench.spoiling import Material
from roboalign_ray.judge.labels import LabelledPairs
from roboalign_ray.judge.student import Student
from roboalign_ray.judge.teacher.protocol import JudgeRequest, TeacherJudgement
from roboalign_ray.judge.teacher.sources import model_source
from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

CONFIG = load_job("demo")


@pytest.fixture(scope="module")
def student() -> Student:
    return Student.load(student_folder(CONFIG))


@pytest.fixture(scope="module")
def pairs() -> LabelledPairs:
    return LabelledPairs([replay_folder(CONFIG)])


def test_it_passes_every_trial_of_the_gate(student: Student, pairs: LabelledPairs) -> None:
    assert tuple(CONFIG.judge.gate.trials) == TRIALS
    gate = try_student(student, CONFIG.judge, pairs)
    assert gate.open, gate.table()
    assert all(row.clips >= 8 for row in gate.rows)


def test_more_of_what_is_wrong_scores_less(student: Student, pairs: LabelledPairs) -> None:
    held_out = pairs.split("held_out", CONFIG.judge.distillation.held_out_fraction)
    clips = gate_clips(pairs, held_out, CONFIG.judge.gate)
    for name in ("blur", "noise", "freeze", "shuffle"):
        assert not DEGRADATIONS[name].needs
        totals = []
        for strength in (0.0, 0.5, 1.0):
            spoiled = [
                degrade(
                    name, c.frames, c.instruction, np.zeros(6), strength, np.random.default_rng(n), Material()
                )
                for n, c in enumerate(clips)
            ]
            judged = student.score([s.frames for s in spoiled], [c.instruction for c in clips])
            totals.append(judged.totals.mean())
        assert totals[0] > totals[1] > totals[2], name


def test_the_teacher_ranks_clips_that_it_has_not_seen(pairs: LabelledPairs) -> None:
    """Far above what the instruction alone would give; exact figures stand on its card."""
    held_out = pairs.split("held_out", CONFIG.judge.distillation.held_out_fraction)
    shown = [pairs.read(int(number)) for number in held_out[:: max(1, len(held_out) // 64)]]
    assert len(shown) >= 32
    outcomes = TransformersTeacher(CONFIG.teacher).judge(
        [JudgeRequest(pair.frames, pair.fps, pair.instruction) for pair in shown]
    )
    judged = [
        (outcome.total, pair.scores.sum())
        for outcome, pair in zip(outcomes, shown, strict=True)
        if isinstance(outcome, TeacherJudgement)
    ]
    assert len(judged) > 0.9 * len(shown)
    assert spearmanr(*zip(*judged, strict=True)).statistic > 0.4


def test_they_are_small() -> None:
    folders = (student_folder(CONFIG), Path(model_source(CONFIG.teacher.model)))
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 15e6
