"""The student inside the package: small, and let through by the reward gate as it is."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.weights import replay_folder, student_folder
from roboalign_ray.config.judge import TRIALS
from roboalign_ray.config.loading import load_job
from roboalign_ray.judge.assessment import gate_clips, try_student
from roboalign_ray.judge.bench.degradations import DEGRADATIONS, degrade
from roboalign_ray.judge.bench.spoiling import Material
from roboalign_ray.judge.labels import LabelledPairs
from roboalign_ray.judge.student import Student

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


def test_it_is_small() -> None:
    size = sum(file.stat().st_size for file in student_folder(CONFIG).iterdir())
    assert size < 15e6
