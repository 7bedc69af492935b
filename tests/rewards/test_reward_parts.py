"""Rewards by name: the weighted sum, and parts from outside this package by entry point and by module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign_ray.config import RewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.rewards.protocol import RewardInput, Score, Scored
from roboalign_ray.rewards.registry import REWARDS, build_reward, check_rewards
from roboalign_ray.rewards.weighted import WeightedReward

MODULE = '''
import numpy as np
from pydantic import BaseModel
from roboalign_ray.rewards.protocol import RewardInput, Scored


class Plain:
    """The channel that is brightest wins."""

    def score(self, inputs):
        return inputs.generated.mean(axis=(1, 2, 3, 4, 5))


class Channel:
    class Config(BaseModel):
        channel: int
        names: list[str] = []

    def __init__(self, config):
        self.config = config

    def score(self, inputs):
        per_frame = inputs.generated[..., self.config.channel].mean(axis=(2, 3, 4)) / 255
        return [Scored(float(row.mean()), {"first": row[0]}, per_frame=row) for row in per_frame]


class Placed:
    def __init__(self, device, student):
        self.device = device

    @classmethod
    def from_context(cls, config, context):
        return cls(context.device, context.student)

    def score(self, inputs):
        return [1.0 if str(self.device) == "cpu" else 0.0] * len(inputs.generated)


class Breaks:
    def __init__(self):
        raise OSError("the weights are not there")

    def score(self, inputs): ...


class Bare:
    def __init__(self, config):
        pass

    def score(self, inputs): ...


class Settings(BaseModel):
    scale: float = 1.0


def scaled(inputs: RewardInput, config: Settings):
    return [config.scale * float(sample.mean()) for sample in inputs.generated]


def plain(inputs):
    return list(inputs.generated.mean(axis=(1, 2, 3, 4, 5)))


def untyped(inputs, config):
    return []


def three(inputs, config: Settings, more):
    return []


def answers(kind):
    def reward(inputs):
        samples, frames = inputs.generated.shape[:2]
        good = [Scored(1.0)] * (samples - 1)
        if kind == "raises":
            raise KeyError("gripper")
        return {
            "short": good,
            "text": [*good, "1.0"],
            "nan": [*good, float("nan")],
            "word": [*good, Scored(1.0, {"a": "b"})],
            "component": [*good, Scored(1.0, {"a": float("inf")})],
            "frames": [*good, Scored(1.0, per_frame=np.zeros(frames + 1))],
            "nothing": None,
        }[kind]
    return reward


short, text, nan, word, component = map(answers, ("short", "text", "nan", "word", "component"))
frames, nothing, raises = map(answers, ("frames", "nothing", "raises"))
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of rewards; one of them is also installed, under the name "channel"."""
    name = f"outside_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    package = tmp_path / "outside-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[roboalign_ray.rewards]\nchannel = {name}:Channel\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture(scope="module")
def inputs() -> RewardInput:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 4, 1, 32, 32, 3), dtype=np.uint8)
    real = rng.integers(0, 256, frames.shape[1:], dtype=np.uint8)
    return RewardInput("push it", real[0], frames, real)


def config(**parts: dict) -> RewardConfig:
    return RewardConfig.model_validate(parts)


def totals(scores) -> list[float]:
    assert all(isinstance(score, Scored) for score in scores), scores
    return [score.total for score in scores]


RANDOM = {"lpips_network": "random-alex"}


def test_a_lone_part_counts_as_often_as_its_weight_says(inputs: RewardInput) -> None:
    once, five = (build_reward(config(fidelity={"weight": w, **RANDOM})).score(inputs) for w in (1.0, 5.0))
    assert min(np.abs(totals(once))) > 0.01
    np.testing.assert_allclose(totals(five), 5 * np.array(totals(once)), rtol=1e-12)
    for single, scaled in zip(once, five, strict=True):
        np.testing.assert_allclose(scaled.per_frame, 5 * single.per_frame, rtol=1e-12)
        assert scaled.components["fidelity/ssim"] == single.components["ssim"]
        assert scaled.components["fidelity"] == single.total


def test_parts_of_all_three_ways_add_up_with_their_weights(module: str, inputs: RewardInput) -> None:
    given = {"fidelity": {"weight": 2.0, **RANDOM}, "channel": {"weight": 3.0, "channel": 1}}
    by_module = {f"{module}:Channel": {"weight": 0.5, "channel": 2, "names": ["a", "b"]}}
    wanted = config(**given, **by_module)
    check_rewards(wanted)
    scores = build_reward(wanted).score(inputs)
    fidelity = np.array(totals(build_reward(config(fidelity={"weight": 1.0, **RANDOM})).score(inputs)))
    green, blue = (inputs.generated[..., c].mean(axis=(1, 2, 3, 4)) / 255 for c in (1, 2))
    np.testing.assert_allclose(totals(scores), 2 * fidelity + 3 * green + 0.5 * blue, rtol=1e-9)
    assert scores[0].components["channel"] == pytest.approx(green[0])
    assert scores[0].components[f"{module}:Channel/first"] == pytest.approx(
        inputs.generated[0, 0, ..., 2].mean() / 255
    )
    assert scores[0].per_frame is not None
    assert scores[0].per_frame.sum() / 4 == pytest.approx(scores[0].total)
    assert "channel" in REWARDS.names()


def test_a_part_of_weight_0_is_not_even_imported(inputs: RewardInput) -> None:
    wanted = config(fidelity={"weight": 1.0, **RANDOM}, **{"nowhere.at:All": {"weight": 0.0}})
    check_rewards(wanted)
    assert len(totals(build_reward(wanted).score(inputs))) == 3


@pytest.mark.parametrize("name", ["Plain", "plain", "scaled"])
def test_classes_and_functions_may_answer_with_numbers(name: str, module: str, inputs: RewardInput) -> None:
    settings = {"scale": 3.0} if name == "scaled" else {}
    wanted = config(**{f"{module}:{name}": {"weight": 1.0, **settings}})
    check_rewards(wanted)
    means = np.array([float(sample.mean()) for sample in inputs.generated])
    np.testing.assert_allclose(
        totals(build_reward(wanted).score(inputs)), means * settings.get("scale", 1.0), rtol=1e-9
    )


def test_a_class_can_ask_for_the_scorers_device(module: str, inputs: RewardInput) -> None:
    wanted = config(**{f"{module}:Placed": {"weight": 1.0}})
    check_rewards(wanted)
    assert totals(build_reward(wanted, device=torch.device("cpu")).score(inputs)) == [1.0] * 3


BAD_CONFIGS = {
    "Channel": ({}, "reward.MODULE:Channel.channel: a value is missing"),
    "Channel ": ({"channel": "1"}, "reward.MODULE:Channel.channel: expected a valid integer, got '1'"),
    "Channel  ": ({"chanel": 1}, "reward.MODULE:Channel: unknown key 'chanel'; did you mean 'channel'?"),
    "Plain": ({"a": 1}, "reward.MODULE:Plain: unknown key 'a'; there are no settings"),
    "scaled": ({"scale": "big"}, "reward.MODULE:scaled.scale: expected a valid number, got 'big'"),
    "Bare": ({}, "it is called Bare(); settings need a pydantic model named Config in the class"),
    "untyped": ({}, "cannot be called (missing a required argument: 'config'); it is called with (inputs)"),
    "three": ({}, "'MODULE:three' cannot be called"),
    "Settings": ({}, "'MODULE:Settings' is no reward: it has no method score"),
    "MODULE": ({}, "module 'MODULE' has no 'MODULE'"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_what_cannot_be_called_is_one_line_before_anything_runs(name: str, module: str) -> None:
    settings, expected = BAD_CONFIGS[name]
    wanted = config(**{f"{module}:{name.strip().replace('MODULE', module)}": {"weight": 1.0, **settings}})
    with pytest.raises(UserError) as caught:
        check_rewards(wanted)
    assert expected.replace("MODULE", module) in caught.value.line()
    assert "\n" not in caught.value.line()


def test_a_constructor_that_fails_is_one_line(module: str) -> None:
    wanted = config(**{f"{module}:Breaks": {"weight": 1.0}})
    check_rewards(wanted)  # nothing is made yet
    with pytest.raises(UserError, match=r"Breaks: cannot be made \(OSError: the weights are not there\)"):
        build_reward(wanted)


BAD_ANSWERS = {
    "short": ("reward", "2 scores for 3 samples"),
    "text": ("reward", "a score is of type str"),
    "nan": ("nan", "a score is not finite"),
    "word": ("reward", "a score holds what is no number"),
    "component": ("nan", "a score is not finite"),
    "frames": ("reward", "per_frame is (5,), not [4]"),
    "nothing": ("reward", "TypeError"),
    "raises": ("reward", "KeyError: 'gripper'"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_is_no_score_is_a_failure(name: str, module: str, inputs: RewardInput) -> None:
    scores = build_reward(config(**{f"{module}:{name}": {"weight": 2.0}})).score(inputs)
    kind, reason = BAD_ANSWERS[name]
    assert len(scores) == 3
    assert isinstance(scores[-1], Failed)
    assert scores[-1].kind == kind
    assert reason in scores[-1].reason
    assert f"{module}:{name}" in scores[-1].reason
    if name not in ("short", "nothing", "raises"):  # one sample's fault is its own
        assert totals(scores[:-1]) == [2.0, 2.0]


class Fixed:
    """A reward that says what it is told."""

    def __init__(self, scores: list[Score]) -> None:
        self.scores = scores

    def score(self, inputs: RewardInput) -> list[Score]:
        return self.scores


def test_a_weighted_sum_fails_with_its_parts_and_adds_their_frames(inputs: RewardInput) -> None:
    frames = np.array([1.0, 3.0])
    judged = Fixed([Scored(4.0, {"x": 1.0}, 7), Scored(5.0, {}, 7), Failed("unreadable", "decode")])
    fidelity = Fixed([Scored(2.0, {}, 0, frames)] * 3)
    first, second, third = WeightedReward({"judge": (judged, 0.5), "fidelity": (fidelity, 2.0)}).score(inputs)
    assert first == Scored(6.0, {"judge": 4.0, "judge/x": 1.0, "fidelity": 2.0}, 7)
    assert isinstance(second, Scored)
    assert second.per_frame is None  # the judge tells no frames apart
    assert third == Failed("judge: unreadable", "decode")
    named = Fixed([Failed("mine: ValueError: no", "extension")] * 3)  # an extension gives its own name
    assert WeightedReward({"mine": (named, 1.0)}).score(inputs) == named.scores
    alone = WeightedReward({"a": (fidelity, 2.0), "b": (fidelity, 1.0)}).score(inputs)[0]
    np.testing.assert_array_equal(alone.per_frame, 3 * frames)
    with pytest.raises(UserError, match="no parts"):
        WeightedReward({})


SHAPES = {
    "5 axes": {"generated": np.zeros((3, 4, 32, 32, 3), np.uint8)},
    "no frame": {"generated": np.zeros((3, 0, 1, 32, 32, 3), np.uint8)},
    "two views of one": {"views": ("front", "wrist")},
    "start": {"start": np.zeros((1, 32, 30, 3), np.uint8)},
    "floats": {"start": np.zeros((1, 32, 32, 3), np.float32)},
    "actions": {"actions": np.zeros((3, 2), np.float32)},
    "names": {"actions": np.zeros((4, 2), np.float32), "action_names": ("x",)},
    "kinds": {"actions": np.zeros((4, 2), np.float32), "action_kinds": ("delta",) * 3},
    "state": {"proprioception": np.zeros((4, 7), np.float32)},
}


@pytest.mark.parametrize("change", SHAPES)
def test_inputs_of_the_wrong_shape_are_told(change: str, inputs: RewardInput) -> None:
    fault = replace(inputs, **SHAPES[change]).fault()
    assert fault is not None
    assert fault.kind == "shape"


def test_inputs_that_fit_have_no_fault(inputs: RewardInput) -> None:
    whole = replace(
        inputs,
        views=("front",),
        actions=np.zeros((4, 2), np.float32),
        action_names=("x", "y"),
        action_kinds=("delta", "hold"),
        proprioception=np.zeros((5, 7), np.float32),
    )
    assert inputs.fault() is None
    assert whole.fault() is None
