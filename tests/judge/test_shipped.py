"""The judges inside the package: a student that the reward gate lets through as it is, and a teacher that sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from roboalign_ray.config.judge import ASKED_TRIALS, LOCAL_TRIALS, PARAPHRASE_TRIALS, UNSOLVED_TRIALS
from roboalign_ray.config.loading import load_job
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import DEGRADATIONS, degrade
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.teacher.model_sources import model_source
from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher
from roboalign_ray.judge.validation.assessment import gate_clips, try_student
from roboalign_ray.judge.validation.trials import GateClip
from roboalign_ray.pipelines.cluster.weight_folders import replay_folder, student_folder

CONFIG = load_job("demo")


@pytest.fixture(scope="module")
def student() -> Student:
    return Student.load(student_folder(CONFIG))


@pytest.fixture(scope="module")
def pairs() -> LabelledPairs:
    return LabelledPairs([replay_folder(CONFIG)])


def test_it_passes_every_trial_of_the_gate(student: Student, pairs: LabelledPairs) -> None:
    assert tuple(CONFIG.judge.gate.trials) == ASKED_TRIALS
    assert set(UNSOLVED_TRIALS) == {"local_reverse", "reverse_from", "local_shuffle", "other_verb"}
    gate = try_student(student, CONFIG.judge, pairs)
    assert gate.open, gate.table()
    assert all(row.clips >= 8 for row in gate.rows)
    assert all(np.isfinite(row.thirds).all() for row in gate.rows if row.trial in LOCAL_TRIALS)
    assert all(row.gap <= 0.02 for row in gate.rows if row.trial in PARAPHRASE_TRIALS)


def _clips(pairs: LabelledPairs) -> list[GateClip]:
    return gate_clips(
        pairs, pairs.split("held_out", CONFIG.judge.distillation.held_out_fraction), CONFIG.judge.gate
    )


def _gaps(student: Student, clips: list[GateClip], spoiled: list[np.ndarray]) -> float:
    asked = [clip.instruction for clip in clips]
    exact = student.score([clip.frames for clip in clips], asked).totals
    return float((exact - student.score(spoiled, asked).totals).mean() / 10)


def test_corruptions_made_by_hand_cost_a_quarter_of_the_range(student: Student, pairs: LabelledPairs) -> None:
    """Apart from the rules that taught it: frames are put together here."""
    clips = _clips(pairs)
    assert {len(clip.frames) for clip in clips} == {13}
    others = [next(o for o in [*clips[n:], *clips] if o.task != c.task).frames for n, c in enumerate(clips)]
    made = {
        "another scene from the middle on": [
            np.concatenate([c.frames[:7], o[7:]]) for c, o in zip(clips, others, strict=True)
        ],
        "another scene in the last three frames": [
            np.concatenate([c.frames[:10], o[10:]]) for c, o in zip(clips, others, strict=True)
        ],
        "one frame of another scene": [
            np.concatenate([c.frames[:6], o[6:7], c.frames[7:]]) for c, o in zip(clips, others, strict=True)
        ],
        "two black frames": [
            np.concatenate([c.frames[:8], 0 * c.frames[8:10], c.frames[10:]]) for c in clips
        ],
        "stands still in the middle": [c.frames[[0, 1, 2, 3, 3, 3, 3, 3, 3, 9, 10, 11, 12]] for c in clips],
        "there and back": [c.frames[[0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0]] for c in clips],
        "jumps back": [c.frames[[0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8]] for c in clips],
    }
    gaps = {name: _gaps(student, clips, spoiled) for name, spoiled in made.items()}
    assert min(gaps.values()) >= 0.25, gaps


def _two_exchanged(word: str) -> str:
    return word[0] + word[2] + word[1] + word[3:]


def _last_lost(word: str) -> str:
    return word[:-1]


def _second_doubled(word: str) -> str:
    return word[:2] + word[1:]


def test_politeness_changes_no_score_and_a_contradiction_does(student: Student, pairs: LabelledPairs) -> None:
    clips = _clips(pairs)
    frames = [clip.frames for clip in clips]
    exact = student.score(frames, [clip.instruction for clip in clips]).totals
    for frame in ("please {} now", "Could you {}, please?", "now, {}!", "I want you to {}", "{} NOW PLEASE"):
        told = student.score(frames, [frame.format(clip.instruction) for clip in clips]).totals
        assert np.abs(told - exact).mean() <= 0.2, frame
    for slip in (_two_exchanged, _last_lost, _second_doubled):
        typed = [" ".join(slip(w) if len(w) > 5 else w for w in c.instruction.split()) for c in clips]
        assert np.abs(student.score(frames, typed).totals - exact).mean() <= 0.2, slip.__name__
    forbidden = student.score(frames, [f"do not {clip.instruction}" for clip in clips]).totals
    assert (exact - forbidden).mean() >= 2.5


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
        if isinstance(outcome, Judgement)
    ]
    assert len(judged) > 0.9 * len(shown)
    assert spearmanr(*zip(*judged, strict=True)).statistic > 0.4


def test_they_are_small() -> None:
    folders = (student_folder(CONFIG), Path(model_source(CONFIG.teacher.model)))
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 15e6
