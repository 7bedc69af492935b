"""The executability reward: its terms against closed forms, and on videos through a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_motion as made
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from roboalign_ray.config.rewards import ExecutabilityRewardConfig, RewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.inverse_dynamics.kinematics import kinematics
from roboalign_ray.inverse_dynamics.measurement import measure
from roboalign_ray.inverse_dynamics.penalty import penalty_of
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
from roboalign_ray.rewards.executability import (
    ClipFacts,
    ExecutabilityReward,
    ExecutabilityTerms,
    command_rank,
    executability_terms,
    wrong_commands,
)
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Scored
from roboalign_ray.rewards.registry import build_reward

CONFIG = ExecutabilityRewardConfig(p0=5e6)  # about what the square's own walks have
CARD = made.motion_card()
CLIP = ClipFacts(CARD, ActionNormaliser.from_card(CARD), 1 / made.FPS)
PROFILE = made.square_profile()
commands = hnp.arrays(np.float64, (8, 2), elements=st.floats(-3, 3))


def terms(read: np.ndarray, commanded: np.ndarray, **changes: float) -> ExecutabilityTerms:
    return executability_terms(
        np.asarray(read, float)[None], commanded, CLIP, PROFILE, CONFIG.model_copy(update=changes)
    )


def moving(command: np.ndarray) -> bool:
    """Whether the floor applies, and the wrong commands differ."""
    return bool(np.abs(command).mean() > 0.1)


# --- terms ------------------------------------------------------------------------------------------------------------


@given(command=commands)
def test_the_reward_of_limits_is_the_published_form(command: np.ndarray) -> None:
    assume(moving(command))
    penalty = penalty_of(kinematics(command, CARD.kinds, CLIP.dt), PROFILE, CONFIG).total
    found = terms(command, command)
    assert found.parts["limits"][0] == pytest.approx((1 + penalty / 5e6) ** -0.5)
    assert found.motion[0] == pytest.approx(1)
    if penalty > 0:
        at_p0 = terms(command, command, p0=float(penalty), gamma=0.7, limit_reward=10.0)
        assert at_p0.parts["limits"][0] == pytest.approx(10 * 2**-0.7)


@given(command=commands)
def test_what_was_commanded_gets_the_highest_following_and_rank(command: np.ndarray) -> None:
    assume(moving(command))
    found = terms(command, command, following_weight=3.0, rank_weight=0.7)
    assert found.error[0] == 0
    assert found.parts["following"][0] == 3
    assert found.parts["rank"][0] in (
        pytest.approx(0.7),
        pytest.approx(0.35),
    )  # half where no wrong one differs
    assert found.total[0] == pytest.approx(sum(value[0] for value in found.parts.values()))


@given(command=commands)
def test_a_frozen_video_never_beats_a_correct_one(command: np.ndarray) -> None:
    assume(moving(command))
    assert terms(np.zeros((8, 2)), command).total < terms(command, command).total


@given(command=commands)
def test_without_floor_and_following_a_frozen_video_is_the_best(command: np.ndarray) -> None:
    """Why the floor and the following stand there: the published penalty alone is least where nothing moves."""
    alone = {"motion_floor": 0.0, "following_weight": 0.0, "rank_weight": 0.0}
    frozen, right = terms(np.zeros((8, 2)), command, **alone), terms(command, command, **alone)
    assert frozen.total >= right.total
    assert frozen.total[0] == 1


@given(share=st.floats(0.01, 2.0))
def test_the_floor_scales_down_in_proportion_below_its_share(share: float) -> None:
    command = np.full((8, 2), 1.5)  # without acceleration: the penalty is 0
    found = terms(share * command, command)
    assert found.motion[0] == pytest.approx(share)
    assert found.parts["limits"][0] == pytest.approx(min(1, share / 0.5))


def test_a_still_command_has_no_floor() -> None:
    nothing = np.zeros((8, 2))
    found = terms(nothing, nothing)
    assert found.parts["limits"][0] == 1
    assert found.parts["following"][0] == 1
    assert found.parts["rank"][0] == 0.25  # no wrong command differs


def test_limits_are_scaled_by_the_trust_in_what_was_read() -> None:
    command = np.full((8, 2), 1.5)
    trust = np.array([[1.0] * 4 + [0.25] * 4])
    for doubt, expected in ((1.0, 0.625), (0.5, 0.75), (0.0, 1.0)):
        config = CONFIG.model_copy(update={"doubt": doubt})
        found = executability_terms(command[None], command, CLIP, PROFILE, config, trust)
        assert found.parts["limits"][0] == pytest.approx(expected)
        assert found.parts["following"][0] == 1
        assert found.limits.mean() == pytest.approx(expected)


def test_a_plausible_clip_keeps_limits_moves_and_is_readable() -> None:
    command = np.full((8, 2), 1.5)
    fast, sure, unsure = np.full((8, 2), 99.0), np.ones((1, 8)), np.full((1, 8), 0.4)
    for read, trust, expected in (
        (command, sure, True),
        (0.4 * command, sure, False),
        (command, unsure, False),
        (fast, sure, False),
    ):
        found = executability_terms(read[None], command, CLIP, PROFILE, CONFIG, trust)
        assert found.plausible.tolist() == [expected]
    assert executability_terms((0 * command)[None], 0 * command, CLIP, PROFILE, CONFIG).plausible.all()


def test_gripper_motion_does_not_lift_the_floor() -> None:
    profile = made.square_profile(gripper=[1])
    command = np.stack([np.full(8, 1.5), np.zeros(8)], axis=1)
    flapping = np.stack([np.zeros(8), np.full(8, 1.5)], axis=1)
    found = executability_terms(flapping[None], command, CLIP, profile, CONFIG)
    assert found.motion[0] == 0
    assert found.parts["limits"][0] == 0


def test_an_error_of_one_deviation_halves_the_following() -> None:
    command = np.full((8, 2), 1.5)
    found = terms(command + CLIP.normaliser.std, command)
    assert found.error[0] == pytest.approx(1)
    assert found.parts["following"][0] == pytest.approx(0.5)
    weighted = made.square_profile(weights=[1.0, 0.25])
    off = command + np.array([0.0, 1.0]) * CLIP.normaliser.std
    one = executability_terms(off[None], command, CLIP, weighted, CONFIG)
    assert one.error[0] == pytest.approx(np.sqrt(0.25 / 1.25))


def test_wrong_commands_are_reversed_mirrored_and_delayed() -> None:
    command = np.arange(12, dtype=float).reshape(6, 2)
    backwards, mirrored, delayed = wrong_commands(command, CLIP)
    np.testing.assert_array_equal(backwards, -command[::-1])
    np.testing.assert_array_equal(mirrored, -command)
    np.testing.assert_array_equal(delayed, np.concatenate([command[3:], command[:3]]))
    rates = replace(CLIP.normaliser, rates=np.array([True, False]))
    backwards, mirrored, _ = wrong_commands(command, replace(CLIP, normaliser=rates))
    np.testing.assert_array_equal(backwards[:, 1], command[::-1, 1])  # positions backwards are positions
    np.testing.assert_allclose(mirrored[:, 1].mean(), command[:, 1].mean())


def test_a_video_of_a_wrong_command_ranks_lower() -> None:
    command = np.stack([[3, 3, 3, 0, 0, 0], [0, 0, 0, 2, 2, 2]], axis=1).astype(float)
    read = np.stack([command, *wrong_commands(command, CLIP)])
    assert command_rank(read, command, CLIP, PROFILE)[0] == 1
    assert (command_rank(read, command, CLIP, PROFILE)[1:] < 1).all()


@given(
    command=commands,
    jitter=hnp.arrays(np.float64, (8, 2), elements=st.floats(-1, 1)),
    scales=st.tuples(st.floats(0, 2), st.floats(0, 2)),
)
def test_more_jitter_on_a_straight_motion_is_never_rewarded(
    command: np.ndarray, jitter: np.ndarray, scales: tuple[float, float]
) -> None:
    straight = np.full((8, 2), 2.0)
    less, more = sorted(scales)
    alone = {"following_weight": 1.0, "rank_weight": 0.0}
    first = terms(straight + less * jitter, straight, **alone)
    second = terms(straight + more * jitter, straight, **alone)
    assert second.parts["following"] <= first.parts["following"] + 1e-12
    assert second.penalty.total >= first.penalty.total * (1 - 1e-9) - 1e-9


@given(read=hnp.arrays(np.float64, (2, 8, 2), elements=st.floats(-1e8, 1e8)), command=commands)
def test_every_reading_has_finite_scores_whose_frames_average_to_the_total(
    read: np.ndarray, command: np.ndarray
) -> None:
    found = executability_terms(read, command, CLIP, PROFILE, CONFIG)
    for sample in range(2):
        score = found.scored(sample, {})
        assert isinstance(score, Scored)
        assert score.per_frame is not None
        assert score.per_frame.shape == (8,)
        assert score.per_frame.mean() == pytest.approx(score.total)
        assert np.isfinite(list(score.components.values())).all()


def test_what_cannot_be_read_is_failed_and_not_zero() -> None:
    read = np.full((8, 2), 1.0)
    read[3, 1] = np.nan
    assert isinstance(terms(read, np.ones((8, 2))).scored(0, {}), Failed)


# --- videos -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward() -> ExecutabilityReward:
    trained = made.trained_model()
    usual = measure(trained, *made.clips(24, seed=99), made.GATE).uncertainty
    return ExecutabilityReward(trained, PROFILE, CONFIG, usual)


def group(*videos: np.ndarray, steps: np.ndarray) -> RewardInput:
    """Samples of frames uint8 [CLIP, SIDE, SIDE, 3], which begin with the same frame."""
    generated = np.stack([video[1:, None] for video in videos])
    return RewardInput(
        instruction="move",
        start=videos[0][:1],
        generated=generated,
        views=("front",),
        actions=steps,
        action_names=CARD.labels,
        action_kinds=CARD.kinds,
        fps=made.FPS,
        embodiment="square",
    )


def walking(seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    steps = made.walk(np.random.default_rng(seed), made.CLIP - 1)
    return made.pictures(steps), steps


def totals(reward: ExecutabilityReward, inputs: RewardInput) -> list[float]:
    scores = reward.score(inputs)
    assert all(isinstance(score, Scored) for score in scores), scores
    return [score.total for score in scores if isinstance(score, Scored)]


@pytest.mark.parametrize("seed", range(4))
def test_the_right_video_beats_every_wrong_one(reward: ExecutabilityReward, seed: int) -> None:
    right, steps = walking(seed)
    rng = np.random.default_rng(seed)
    frozen = np.repeat(right[:1], len(right), axis=0)
    shuffled = np.concatenate([right[:1], right[1:][rng.permutation(len(right) - 1)]])
    noise = np.concatenate([right[:1], rng.integers(0, 256, right[1:].shape, dtype=np.uint8)])
    other = made.pictures(made.walk(np.random.default_rng(seed + 100), made.CLIP - 1))
    found = totals(reward, group(right, frozen, shuffled, noise, other, steps=steps))
    assert found[0] > max(found[1:])
    score = reward.score(group(right, steps=steps))[0]
    assert isinstance(score, Scored)
    assert score.components["error"] < 0.2
    assert score.components["motion"] == pytest.approx(1, abs=0.1)


def test_heavier_artefacts_are_rewarded_less(reward: ExecutabilityReward) -> None:
    right, steps = walking(8)
    noise = np.random.default_rng(0).integers(0, 256, right.shape, dtype=np.uint8)
    spoiled = [
        np.where(np.arange(len(right))[:, None, None, None] >= len(right) - n, noise, right)
        for n in (0, 3, 6, 9)
    ]
    found = totals(reward, group(*spoiled, steps=steps))
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.5


def test_without_doubt_noise_is_rewarded_for_the_smooth_motion_that_is_read_from_it(
    reward: ExecutabilityReward,
) -> None:
    right, steps = walking(6)
    noise = np.random.default_rng(0).integers(0, 256, right.shape, dtype=np.uint8)
    noise[0] = right[0]
    inputs = group(right, noise, steps=steps)
    sure, doubting = (
        ExecutabilityReward(
            reward.model, PROFILE, CONFIG.model_copy(update={"doubt": doubt}), reward.usual
        ).score(inputs)
        for doubt in (0.0, 1.0)
    )
    assert all(isinstance(score, Scored) for score in (*sure, *doubting))
    assert sure[1].components["limits"] > 0.2 * sure[0].components["limits"]  # type: ignore[union-attr]
    assert doubting[1].components["limits"] < 0.15 * doubting[0].components["limits"]  # type: ignore[union-attr]
    assert doubting[0].components["trust"] > 0.8  # type: ignore[union-attr]


def test_views_are_found_by_name_and_samples_do_not_mix(reward: ExecutabilityReward) -> None:
    right, steps = walking(3)
    frozen = np.repeat(right[:1], len(right), axis=0)
    together = totals(reward, group(right, frozen, steps=steps))
    apart = [totals(reward, group(video, steps=steps))[0] for video in (right, frozen)]
    np.testing.assert_allclose(together, apart, atol=1e-4)
    inputs = group(right, steps=steps)
    beside = np.zeros_like(inputs.generated)
    two = replace(
        inputs,
        generated=np.concatenate([beside, inputs.generated], axis=2),
        start=np.concatenate([inputs.start * 0, inputs.start]),
        views=("wrist", "front"),
    )
    np.testing.assert_allclose(totals(reward, two), apart[:1], atol=1e-4)


def test_a_clip_of_another_kind_fails_in_one_line(reward: ExecutabilityReward) -> None:
    right, steps = walking(3)
    inputs = group(right, right, steps=steps)
    for changed, told in (
        (replace(inputs, actions=None, action_names=(), action_kinds=()), "no commanded actions"),
        (
            replace(inputs, actions=steps[:, :1], action_names=(), action_kinds=()),
            "have 1 dimensions, the inverse",
        ),
        (replace(inputs, fps=5.0), "5 frames per second, the inverse dynamics model 10"),
        (replace(inputs, embodiment="ur5"), "the robot is ur5, the inverse dynamics model is of square"),
        (replace(inputs, views=("wrist",)), "no view 'front'"),
        (
            replace(inputs, generated=inputs.generated[:, :1], actions=steps[:1]),
            "clip of 2 frames is too short",
        ),
    ):
        scores = reward.score(changed)
        assert len(scores) == 2
        for score in scores:
            assert isinstance(score, Failed)
            assert told in score.reason
            assert "\n" not in score.reason


def test_it_stands_in_a_weighted_sum_beside_fidelity(tmp_path: Path) -> None:
    folder = made.saved_model(tmp_path / "model")
    config = RewardConfig.model_validate(
        {
            "fidelity": {"weight": 2, "lpips_weight": 0, "lpips_network": "random-alex"},
            "executability": {
                "weight": 3,
                "model": str(folder),
                "embodiment": str(folder / "square.yaml"),
                "p0": 1e5,
            },
        }
    )
    right, steps = walking(4)
    inputs = group(right, np.repeat(right[:1], len(right), axis=0), steps=steps)
    inputs = replace(inputs, real=inputs.generated[0])
    scores = build_reward(config).score(inputs)
    for score in scores:
        assert isinstance(score, Scored), score
        assert score.total == pytest.approx(
            2 * score.components["fidelity"] + 3 * score.components["executability"]
        )
        assert "executability/penalty" in score.components
        assert score.per_frame is not None
        assert score.per_frame.mean() == pytest.approx(score.total)
    alone = ExecutabilityReward.from_context(config.executability, RewardContext(torch.device("cpu")))
    assert totals(alone, inputs) == pytest.approx([s.components["executability"] for s in scores])  # type: ignore[union-attr]


def test_a_model_that_may_not_reward_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    context = RewardContext(torch.device("cpu"))
    bad = made.saved_model(tmp_path / "bad", labels="shuffled")
    settings = {"model": str(bad), "embodiment": str(bad / "square.yaml"), "p0": 1.0}
    with pytest.raises(UserError, match="gate of the inverse dynamics model is closed"):
        ExecutabilityReward.from_context(ExecutabilityRewardConfig.model_validate(settings), context)
    good = made.saved_model(tmp_path / "good")
    for change, told in (
        ({"embodiment": None}, "no embodiment profile is of the robot square"),
        (
            {"embodiment": "metaworld_sawyer"},
            "actions have 2 dimensions, the profile 'metaworld_sawyer' has 4",
        ),
        ({"model": str(tmp_path / "none")}, "holds no inverse_dynamics.json"),
    ):
        values = {"model": str(good), "embodiment": str(good / "square.yaml"), "p0": 1.0, **change}
        with pytest.raises(UserError, match=told) as error:
            ExecutabilityReward.from_context(ExecutabilityRewardConfig.model_validate(values), context)
        assert "\n" not in error.value.line()
    with pytest.raises(UserError, match="not calibrated"):
        ExecutabilityReward(made.trained_model(), PROFILE, ExecutabilityRewardConfig(), 1.0)
