"""The student as a reward: weighted sums, its version, the view it looks at, and what it cannot score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_student import tiny_student

from roboalign_ray.config.base import ConfigError
from roboalign_ray.config.rewards import JudgedRewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.rubric import names
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Scored
from roboalign_ray.rewards.student_judge import JudgedReward

VIEWS = ("front", "wrist")


def inputs(instruction: str = "push it") -> RewardInput:
    rng = np.random.default_rng(0)
    start = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return RewardInput(
        instruction, start, rng.integers(0, 256, (3, 4, 2, 16, 16, 3), dtype=np.uint8), views=VIEWS
    )


@pytest.mark.parametrize(("view", "number"), [(None, 0), ("front", 0), ("wrist", 1)])
def test_reward_is_the_weighted_sum_of_one_view_with_the_students_version(view, number) -> None:
    student, given = tiny_student(), inputs()
    student.version = 5
    weights = (1.0, 0.5, 0.0, 2.0, 1.0, 0.25)
    scores = JudgedReward(student, JudgedRewardConfig(weights=weights, view=view)).score(given)
    videos = np.stack([[given.start[number], *clip[:, number]] for clip in given.generated])
    expected = student.score(videos, ["push it"] * 3).scores
    for score, row in zip(scores, expected, strict=True):
        assert isinstance(score, Scored)
        assert score.total == pytest.approx(float(np.dot(weights, row)))
        assert score.version == 5
        assert [score.components[name] for name in names()] == pytest.approx(row.tolist())


def test_the_views_differ() -> None:
    """Or the test above would hold of a reward that ignores the view."""
    student, given = tiny_student(), inputs()
    front, wrist = (
        JudgedReward(student, JudgedRewardConfig(view=view)).score(given)[0].total for view in VIEWS
    )
    assert abs(front - wrist) > 1e-4


def test_uncertainty_costs_what_the_config_says() -> None:
    student, given = tiny_student(), inputs()
    plain = JudgedReward(student, JudgedRewardConfig()).score(given)[0]
    careful = JudgedReward(student, JudgedRewardConfig(uncertainty_penalty=2.0)).score(given)[0]
    assert careful.total == pytest.approx(plain.total - 2 * plain.components["uncertainty"])


def test_what_cannot_be_scored_has_failed_and_is_no_zero() -> None:
    student, given = tiny_student(), inputs()
    reward = JudgedReward(student, JudgedRewardConfig())
    assert [type(s) for s in reward.score(inputs(" "))] == [Failed] * 3
    floats = replace(given, generated=given.generated.astype(np.float32))
    assert [type(s) for s in reward.score(floats)] == [Failed] * 3
    small = replace(given, start=given.start[:, :8])
    assert [type(s) for s in reward.score(small)] == [Failed] * 3
    elsewhere = JudgedReward(student, JudgedRewardConfig(view="top")).score(given)
    assert elsewhere == [Failed("no view 'top' to judge (views: front, wrist)", "missing")] * 3
    with torch.no_grad():
        student.head.bias[0] = float("nan")
    assert [(type(s), s.kind) for s in reward.score(given)] == [(Failed, "nan")] * 3
    with pytest.raises(ConfigError, match="6 weights"):
        JudgedRewardConfig(weights=(1.0, 2.0))


def test_no_student_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^reward\.judged: the reward needs a student$"):
        JudgedReward.from_context(JudgedRewardConfig(), RewardContext(torch.device("cpu")))
