"""The protocols over a world whose answers are known: a square that actions move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roboalign_ray.config import EvaluationConfig, RefreshConfig
from roboalign_ray.evaluation import protocols
from roboalign_ray.evaluation.protocols import EvaluationWindow
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics import frame_metrics as metrics
from roboalign_ray.metrics.perceptual import PerceptualDistance, load_lpips
from roboalign_ray.world_model.protocol import Prompt, Rollout, RolloutCost
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment

SIDE = 32


def _draw(position: int, brightness: float = 1.0) -> np.ndarray:
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    frame[12:18, position % SIDE : position % SIDE + 6] = round(255 * brightness)
    return frame


def _find(frame: np.ndarray) -> int:
    return int(np.flatnonzero(frame[12].any(axis=-1))[0])


class SquareWorld:
    """A world model that knows the rule (the action is the step to the right) and dims by `drift` a frame."""

    version = 0

    def __init__(self, drift: float = 0.0, peak: int = 10) -> None:
        self.drift, self.peak, self.calls = drift, peak, 0

    def rollout(self, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> list[Rollout]:
        self.calls += 1
        return [self._group(prompt, own) for prompt, own in zip(prompts, seeds, strict=True)]

    def _group(self, prompt: Prompt, seeds: tuple[int, ...]) -> Rollout:
        path = _find(prompt.start[0]) + np.cumsum(prompt.actions[:, 0])
        tokens = np.broadcast_to(path[None, :, None], (len(seeds), len(path), 1)).astype(np.int32)
        segment = TokenSegment(
            context=np.zeros((1, 1), np.int32),
            given=np.zeros((1, 1, 1), np.int32),
            actions=prompt.actions,
            tokens=tokens,
            logprobs=np.zeros(tokens.shape, np.float32),
            version=0,
        )
        cost = RolloutCost(np.full(len(path), 0.01), self.peak, 1000 * self.peak)
        return Rollout(prompt.prompt_id, "", seeds, TokenPayload((segment,)), cost)

    def decode(self, group: Rollout) -> np.ndarray:
        return np.stack(
            [
                np.stack([_draw(int(x), 1 - self.drift * (t + 1)) for t, x in enumerate(sample[:, 0])])
                for sample in group.payload.tokens
            ]
        )[:, :, None]


def _windows(count: int = 4, horizon: int = 12) -> list[EvaluationWindow]:
    rng = np.random.default_rng(0)
    windows = []
    for index in range(count):
        actions = rng.integers(0, 3, size=(horizon, 1))
        path = index + np.cumsum(actions[:, 0])
        real = np.stack([_draw(int(x)) for x in path])
        windows.append(EvaluationWindow(Prompt(f"w{index}", _draw(index), _draw(index), actions), real))
    return windows


@pytest.fixture(scope="module")
def lpips() -> PerceptualDistance:
    return load_lpips("alex")


@pytest.fixture(scope="module")
def config() -> EvaluationConfig:
    return EvaluationConfig(windows=(4, 8), bootstrap_resamples=200)


def test_one_step_separates_knowing_from_copying_and_from_wrong_actions(
    lpips: PerceptualDistance, config: EvaluationConfig
) -> None:
    result = protocols.one_step(SquareWorld(), _windows(), lpips, config, batch=5)
    assert result.predicted.total("psnr").mean == pytest.approx(100)
    assert result.predicted.total("mse").mean == 0
    assert result.shuffled.total("mse").low > 0
    assert result.copy_last.total("lpips").low > result.predicted.total("lpips").high
    assert result.predicted.total("psnr").n == 4
    window = _windows()[2]
    before = np.concatenate([window.start[None], window.real[:-1]])
    expected = ((before / 255.0 - window.real / 255.0) ** 2).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(result.copy_last.per_frame["mse"][2], expected, atol=1e-6)


def test_windows_keep_the_episodes_of_their_names(
    lpips: PerceptualDistance, config: EvaluationConfig
) -> None:
    windows = [
        replace(window, prompt=replace(window.prompt, prompt_id=f"lab/{number // 2}@{number}"))
        for number, window in enumerate(_windows())
    ]
    names = ("lab/0", "lab/0", "lab/1", "lab/1")
    result = protocols.one_step(SquareWorld(), windows, lpips, config, every=5)
    assert result.predicted.episodes == result.copy_last.episodes == names
    assert [window.episode for window in _windows(2)] == ["w0", "w1"]  # names without a window


def test_further_scores_are_means_over_the_samples_that_have_one(
    lpips: PerceptualDistance, config: EvaluationConfig
) -> None:
    seen = []

    def scorer(rollout: Rollout, frames: np.ndarray) -> dict[str, np.ndarray]:
        seen.append((rollout.prompt_id, frames.shape[:3]))
        number = int(rollout.prompt_id[1:])
        return {"mine": np.array([number, np.nan if number < 2 else 3.0]), "none": np.full(2, np.nan)}

    result = protocols.evaluate_rollouts(
        SquareWorld(),
        _windows(),
        lpips,
        config.model_copy(update={"samples": 2}),
        RefreshConfig(),
        scorer=scorer,
    )
    assert seen == [(f"w{number}", (2, 12, 1)) for number in range(4)]
    np.testing.assert_allclose(result.scores["mine"], [0, 1, 2.5, 3])
    assert np.isnan(result.scores["none"]).all()


def test_one_step_may_skip_frames(lpips: PerceptualDistance, config: EvaluationConfig) -> None:
    result = protocols.one_step(SquareWorld(), _windows(), lpips, config, every=5)
    assert result.predicted.per_frame["psnr"].shape == (4, 3)
    assert result.predicted.total("psnr").mean == pytest.approx(100)


def test_one_step_shows_real_frames_and_true_actions_before_the_last(lpips: PerceptualDistance) -> None:
    class Recording(SquareWorld):
        def rollout(self, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> list[Rollout]:
            seen.extend(prompts)
            return super().rollout(prompts, seeds)

    seen: list[Prompt] = []
    [window] = _windows(1)
    config = EvaluationConfig(history=3, bootstrap_resamples=50)
    result = protocols.one_step(Recording(), [window], lpips, config, every=2)
    assert result.frames_seen == 4
    first, second, third = seen[:3]  # steps 0, 2, 4 with true actions; as many with shuffled ones follow
    assert first.past is None
    assert second.past is not None
    np.testing.assert_array_equal(second.past, np.stack([window.start, window.real[0]]))
    np.testing.assert_array_equal(second.context, window.start)
    for prompt in (third, seen[6 + 2]):
        assert prompt.past is not None
        np.testing.assert_array_equal(prompt.past, window.real[:3])
        np.testing.assert_array_equal(prompt.start, window.real[3])
        np.testing.assert_array_equal(prompt.past_actions, window.prompt.actions[1:4])
    np.testing.assert_array_equal(third.actions, window.prompt.actions[4:5])


def test_long_horizon_compares_policies_over_the_same_windows(
    lpips: PerceptualDistance, config: EvaluationConfig
) -> None:
    worlds = {"none": SquareWorld(0.05, peak=50), "swr": SquareWorld(0.01, peak=20)}
    policies = [RefreshConfig(policy="none"), RefreshConfig(policy="swr", window=4)]
    counted: list[int] = []
    result = protocols.long_horizon(
        lambda refresh: worlds[refresh.policy],
        policies,
        _windows(),
        lpips,
        config,
        batch=3,
        keep=2,
        advance=counted.append,
    )
    plain, swr = result.policies
    assert (plain.name, swr.name) == ("plain autoregression", "SWR, W = 4")
    assert (result.horizon, result.windows, result.samples) == (12, 4, 1)
    # Brightness (1 - drift t) on a white square of 36 of 1024 pixels: the error is known in closed form.
    faded = np.round(255 * (1 - 0.05 * np.arange(1, 13))) / 255
    np.testing.assert_allclose(plain.metrics.per_frame["mse"][0], (1 - faded) ** 2 * 36 / 1024, rtol=1e-4)
    assert swr.metrics.last("psnr", 4).low > plain.metrics.last("psnr", 4).high
    assert plain.metrics.first("psnr", 4).mean > plain.metrics.last("psnr", 4).mean
    assert plain.metrics.beyond("psnr", 8).mean == pytest.approx(plain.metrics.last("psnr", 4).mean)
    assert (plain.peak_sequence, swr.cache_bytes) == (50, 20_000)
    assert plain.seconds == pytest.approx(2 * 12 * 0.01)  # two batches, times counted once each
    assert swr.frames.shape == (2, 12, 1, SIDE, SIDE, 3)
    assert sum(counted) == 8
    rows = result.rows(edge=4)
    assert [row["policy"] for row in rows] == ["plain autoregression", "SWR, W = 4", "copy first frame"]
    assert rows[0]["psnr"] == pytest.approx(plain.metrics.per_frame["psnr"].mean())
    assert rows[0]["psnr_low"] <= rows[0]["psnr"] <= rows[0]["psnr_high"]


def test_copying_the_first_frame_is_the_baseline(lpips: PerceptualDistance, config: EvaluationConfig) -> None:
    windows = _windows()
    result = protocols.long_horizon(
        lambda refresh: SquareWorld(), [RefreshConfig(policy="none")], windows, lpips, config
    )
    real = windows[1].real[:, 0]
    a = metrics.to_images(np.broadcast_to(windows[1].start[0], real.shape))
    expected = metrics.psnr(a, metrics.to_images(real))
    np.testing.assert_allclose(result.copy_first.per_frame["psnr"][1], expected, rtol=1e-5)
    assert (result.copy_first.freeze_rate == 1).all()
    assert (result.policies[0].metrics.freeze_rate == 0).all()
    assert (result.copy_first.motion == 0).all()
    np.testing.assert_allclose(result.policies[0].metrics.motion, 1)


def test_standard_policies_hold_every_rival(config: EvaluationConfig) -> None:
    names = [protocols.policy_name(p) for p in protocols.standard_policies(config, RefreshConfig())]
    assert names == [
        "plain autoregression",
        "SWR, W = 4",
        "SWR, W = 8",
        "token window, W = 4",
        "attention sinks, W = 4",
        "reference + recent, W = 4",
    ]
    known = protocols.standard_policies(config, RefreshConfig(), {"none", "reference_recent"})
    assert [policy.policy for policy in known] == ["none", "reference_recent"]


def test_windows_that_do_not_fit(lpips: PerceptualDistance, config: EvaluationConfig) -> None:
    window = _windows()[0]
    with pytest.raises(UserError, match="w0: 3 real frames for 12 actions"):
        EvaluationWindow(window.prompt, window.real[:3])
    mixed = [window, *_windows(1, horizon=5)]
    with pytest.raises(UserError, match="horizons"):
        protocols.long_horizon(lambda r: SquareWorld(), [RefreshConfig()], mixed, lpips, config)
    with pytest.raises(UserError, match="no windows"):
        protocols.one_step(SquareWorld(), [], lpips, config)
