"""The gate opens for a judge that knows, stays shut for those that do not, and its alarms ring for cause alone."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from roboalign_ray.config.base import ConfigError
from roboalign_ray.config.judge import (
    CONTRADICTION_TRIALS,
    LOCAL_TRIALS,
    PARAPHRASE_TRIALS,
    TRIALS,
    WHOLE_TRIALS,
    GateConfig,
)
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.degradation_table import LOCAL
from roboalign_ray.judge.bench.wording import CONTRADICTIONS, PARAPHRASES
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.validation.alarms import Audit, RewardAlarms, motion_share
from roboalign_ray.judge.validation.baselines import pixel_l1_scores
from roboalign_ray.judge.validation.gate import GateResult, run_gate
from roboalign_ray.judge.validation.trials import GateClip, trial_questions

LENGTH = 12


def moving_square(number: int) -> np.ndarray:
    """Down where the number is odd, else to the right; a row or column further for every other one."""
    frames = np.full((LENGTH, 32, 32, 3), 60, np.uint8)
    for t in range(LENGTH):
        row, column = (2 + 2 * t, 6 + number) if number % 2 else (6 + number, 2 + 2 * t)
        frames[t, row : row + 6, column : column + 6] = (220, 120, 40)
    return frames


ASKED = ("push the puck to the target", "open the drawer by its handle")
CLIPS = [
    GateClip(str(n), moving_square(n), ASKED[n % 2], moving_square(n + 1), f"sim/{ASKED[n % 2][:4]}/{n}")
    for n in range(6)
]


def knowing(questions) -> np.ndarray:
    """Knows every clip and what is done in it, in any words."""
    real = {(c.frames.tobytes(), c.instruction) for c in CLIPS}
    for trial in PARAPHRASE_TRIALS:
        real |= {(q.frames.tobytes(), q.instruction) for q in trial_questions(trial, CLIPS) if q is not None}
    return np.array([10.0 if (q.frames.tobytes(), q.instruction) in real else 4.0 for q in questions])


def test_a_judge_that_knows_passes_every_trial() -> None:
    result = run_gate(knowing, CLIPS, GateConfig(trials=TRIALS))
    assert [row.trial for row in result.rows] == list(TRIALS)
    for row in result.rows:
        assert row.clips >= 5, row.trial
        if row.trial in PARAPHRASE_TRIALS:
            assert row.gap == 0
        else:
            assert row.gap == pytest.approx(0.6)
            assert row.wins == 1
        assert row.thirds == (pytest.approx((0.6,) * 3) if row.trial in LOCAL_TRIALS else ())
    result.assert_open()


def test_every_rule_of_the_bench_and_every_rewording_is_a_trial() -> None:
    assert tuple(rule.name for rule in LOCAL) == LOCAL_TRIALS
    assert tuple(CONTRADICTIONS) == CONTRADICTION_TRIALS
    assert tuple(PARAPHRASES) == PARAPHRASE_TRIALS
    assert len(set(TRIALS)) == len(TRIALS)


@pytest.mark.parametrize("overlooked", range(3))
def test_a_judge_that_does_not_look_at_one_third_fails_by_that_third(overlooked: int) -> None:
    part = (slice(1, 4), slice(4, 8), slice(8, 12))[overlooked]
    seen_of = {np.delete(c.frames, part, axis=0).tobytes() for c in CLIPS}

    def judge(questions) -> np.ndarray:
        return np.array(
            [10.0 if np.delete(q.frames, part, axis=0).tobytes() in seen_of else 2.0 for q in questions]
        )

    [row] = run_gate(judge, CLIPS, GateConfig(trials=("blank",))).rows
    assert row.thirds == pytest.approx([0.0 if third == overlooked else 0.8 for third in range(3)])
    assert (row.gap, row.wins, row.passed) == (0, 0.5, False)


def test_a_judge_that_minds_politeness_fails_whichever_way_it_errs() -> None:
    def judge(sign: float, much: float):
        def scored(questions) -> np.ndarray:
            polite = np.array([q.instruction not in ASKED for q in questions])
            # Half of the clips rise and half fall: the mean stays.
            ways = np.array([1 if q.instruction.count("puck") else sign for q in questions])
            return 5.0 + much * polite * ways

        return scored

    for sign in (1.0, -1.0):
        [row] = run_gate(judge(sign, 0.8), CLIPS, GateConfig(trials=("politeness",))).rows
        assert (row.gap, row.passed) == (pytest.approx(0.08), False)
    [row] = run_gate(judge(1.0, 0.19), CLIPS, GateConfig(trials=("politeness",))).rows
    assert row.passed


def test_clips_are_cut_together_with_another_task_or_another_start_of_their_own() -> None:
    by_frame = {frame.tobytes(): clip for clip in CLIPS for frame in clip.frames[1:]}
    for trial, same_task in (("scene_cut", False), ("episode_cut", True)):
        for clip, question in zip(CLIPS, trial_questions(trial, CLIPS), strict=True):
            last = by_frame[question.frames[-1].tobytes()]
            assert (last.task == clip.task) is same_task
            assert last.group_id != clip.group_id
    assert [q.third for q in trial_questions("blank", CLIPS)] == [0, 1, 2, 0, 1, 2]


def test_what_needs_words_that_no_list_knows_is_left_out() -> None:
    odd = [replace(c, instruction=told) for c, told in zip(CLIPS, ("wink", "nod") * 3, strict=True)]
    trials = ("other_verb", "synonyms", "typos", "episode_cut")
    alone = [replace(c, group_id="") for c in odd[:2]]
    result = run_gate(lambda questions: np.zeros(len(questions)), alone, GateConfig(trials=trials))
    assert all((row.clips, row.passed) == (0, True) for row in result.rows)
    assert result.table().count("not tried") == len(trials)
    assert GateResult.from_json(json.loads(json.dumps(result.as_json()))).table() == result.table()


def test_pixel_distance_and_a_constant_fail() -> None:
    def pixel_l1(questions) -> np.ndarray:
        return pixel_l1_scores([q.frames for q in questions], [q.reference for q in questions]).sum(1)

    result = run_gate(pixel_l1, CLIPS, GateConfig(trials=TRIALS), name="pixel L1")
    failed = {row.trial for row in result.rows if not row.passed}
    assert {"blur", "static", "reverse", "wrong_instruction"} <= failed
    with pytest.raises(
        UserError, match=r"pixel L1: the reward gate is closed: \d+ of 44 trials failed.*blur \d+\.\d%"
    ) as closed:
        result.assert_open()
    assert pickle.loads(pickle.dumps(closed.value)).details == result.table()  # as Ray hands it on
    constant = run_gate(lambda questions: np.full(len(questions), 7.0), CLIPS, GateConfig(trials=TRIALS))
    assert {row.trial for row in constant.rows if row.passed} == set(PARAPHRASE_TRIALS)
    assert all(row.gap == 0 and row.wins == 0.5 for row in constant.rows)


def test_spoiled_clips_are_what_they_are_called() -> None:
    frames = CLIPS[0].frames
    made = {trial: trial_questions(trial, CLIPS)[0] for trial in WHOLE_TRIALS}
    np.testing.assert_array_equal(made["reverse"].frames, frames[::-1])
    np.testing.assert_array_equal(made["static"].frames, np.stack([frames[0]] * LENGTH))
    assert (np.ptp(made["temporal_mean"].frames, axis=0) == 0).all()
    assert made["temporal_mean"].frames.mean() == pytest.approx(frames.mean(), abs=0.5)
    shuffled = made["shuffle"].frames
    assert sorted(f.tobytes() for f in shuffled) == sorted(f.tobytes() for f in frames)
    assert not np.array_equal(shuffled, frames)
    assert np.abs(np.diff(made["blur"].frames.astype(int), axis=2)).max() < 60
    assert made["wrong_instruction"].instruction == CLIPS[1].instruction
    np.testing.assert_array_equal(made["wrong_clip"].frames, CLIPS[1].frames)
    np.testing.assert_array_equal(made["wrong_actions"].frames, CLIPS[0].wrong_actions)
    assert all(np.array_equal(question.reference, frames) for question in made.values())


def test_what_could_not_be_tried_keeps_the_gate_shut() -> None:
    alike = [GateClip(c.clip_id, c.frames, "push") for c in CLIPS]
    config = GateConfig(trials=WHOLE_TRIALS)
    result = run_gate(lambda questions: np.arange(len(questions), 0.0, -1), alike, config)
    untried = {row.trial for row in result.rows if row.clips == 0}
    assert untried == {"wrong_clip", "wrong_instruction", "wrong_actions"}
    with pytest.raises(UserError, match="wrong_actions not tried"):
        result.assert_open()
    again = GateResult.from_json(json.loads(json.dumps(result.as_json())))
    assert again.table() == result.table()
    with pytest.raises(UserError, match="no real clip"):
        run_gate(knowing, [], GateConfig())
    with pytest.raises(ConfigError, match="unknown trial"):
        GateConfig(trials=("blurr",))


def test_failed_scores_are_counted_and_too_many_close_it() -> None:
    def failing(count: int):
        def judge(questions):
            scores = knowing(questions)
            scores[:count] = np.nan
            return scores

        return judge

    few = run_gate(failing(1), CLIPS, GateConfig(trials=("reverse",))).rows[0]
    assert (few.clips, few.failed, few.passed) == (5, 1, True)
    assert not run_gate(failing(4), CLIPS, GateConfig(trials=("reverse",))).open


# --- alarms --------------------------------------------------------------------------------------------------------


def audit(
    update: int, student: float, teacher: float, motion: float | None = 1.0, dimension: int = 0
) -> Audit:
    """Both judges at half of every maximum, but for the student's `dimension` and the teacher's total."""
    told, truth = np.tile(maxima() * 0.5, (4, 1)), np.tile(maxima() * teacher, (4, 1))
    told[:, dimension] = maxima()[dimension] * student
    return Audit(update, told, truth, motion)


def test_hacking_is_a_rise_against_a_falling_teacher() -> None:
    config = GateConfig(hacking_window=4, hacking_change=0.05, student_teacher_gap=0.9)
    alarms = RewardAlarms(config)
    found = [
        a for n in range(6) for a in alarms.observe(audit(n, 0.5 + 0.05 * n, 0.6 - 0.05 * n, dimension=2))
    ]
    assert {a.kind for a in found} == {"hacking"}
    assert all("action_outcome_consistency" in a.message for a in found)
    assert found[0].update == 3  # as soon as the window is full
    assert not any("relabelled in between" in a.message for a in found)
    relabelled = RewardAlarms(config)
    audits = [
        replace(audit(n, 0.5 + 0.05 * n, 0.6 - 0.05 * n, dimension=2), version=n // 3) for n in range(6)
    ]
    told = [a.message for each in audits for a in relabelled.observe(each)]
    assert len(told) == len(found)
    assert all(message.endswith("; the student was relabelled in between") for message in told)
    honest = RewardAlarms(config)
    assert not [a for n in range(6) for a in honest.observe(audit(n, 0.5 + 0.05 * n, 0.5 + 0.05 * n))]
    worse = RewardAlarms(config)
    assert not [a for n in range(6) for a in worse.observe(audit(n, 0.5, 0.6 - 0.05 * n))]


def test_motion_floor_and_gap() -> None:
    alarms = RewardAlarms(GateConfig(motion_floor=0.3, student_teacher_gap=0.2))
    assert [a.kind for a in alarms.observe(audit(1, 0.5, 0.5, motion=0.1))] == ["motion"]
    assert [a.kind for a in alarms.observe(audit(2, 0.5, 0.2))] == ["gap"]
    assert alarms.observe(audit(3, 0.5, 0.9)) == ()  # a modest student is no danger
    failed = Audit(4, np.full((2, 6), np.nan), np.ones((2, 6)), None)
    assert alarms.observe(failed) == ()


def test_alarms_go_on_after_a_restart() -> None:
    config = GateConfig(hacking_window=4, student_teacher_gap=0.9)
    audits = [audit(n, 0.5 + 0.05 * n, 0.6 - 0.05 * n) for n in range(6)]
    whole, first, second = RewardAlarms(config), RewardAlarms(config), RewardAlarms(config)
    expected = [whole.observe(a) for a in audits]
    told = [first.observe(a) for a in audits[:3]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert told + [second.observe(a) for a in audits[3:]] == expected


def test_motion_is_measured_against_real_clips() -> None:
    real = moving_square(0)
    assert motion_share(real, real) == 1
    assert motion_share(np.stack([real[:1].repeat(6, 0)]), real) == 0
    assert np.isnan(motion_share(real, real[:1].repeat(6, 0)))
