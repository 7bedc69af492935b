"""The pre-training step of the diffusion world model: its samples, its loss, exact resumption, and that it learns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from roboalign_ray.config import ConfigError, DiffusionConfig, DiffusionTrainingConfig
from roboalign_ray.world_model.diffusion import pretraining
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.conditioning import Inputs, clip_of, clip_to_bytes, inputs_of
from roboalign_ray.world_model.diffusion.denoising import predict_clip, residual_of, sample_clip
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.noise_schedule import noisy
from roboalign_ray.world_model.diffusion.pretraining import DiffusionTrainer, own_clips

SIZE, SIDE = 32, 8
SCALING = ActionScaling((-3.0, -3.0), (3.0, 3.0))


def config(history: tuple[int, ...] = (0, 1), **training: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate(
        {
            "denoiser": {
                "views": 2,
                "height": SIZE,
                "width": SIZE,
                "channels": (16, 32),
                "blocks": 1,
                "heads": 2,
                "history": history,
                "action_dims": 2,
                "past_actions": 1,
            },
            "training": {
                "steps": 60,
                "windows_per_step": 4,
                "clips_per_window": 3,
                "learning_rate": 3e-3,
                "warmup_steps": 5,
                "perceptual_weight": 0.0,
                "ema_decay": 0.9,
                **training,
            },
        }
    )


def trainer(**settings: object) -> DiffusionTrainer:
    torch.manual_seed(7)
    told = config(**settings)
    return DiffusionTrainer(Denoiser(told.denoiser), told, SCALING, None)


def squares(seed: int, rows: int = 4, frames: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of a bright square that moves as its actions say, in the second view mirrored; on a lasting pattern."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(-3, 4, (rows, frames, 2)).astype(np.float32)
    ramp = np.linspace(20, 120, SIZE).astype(np.uint8)
    video = np.empty((rows, frames, 2, SIZE, SIZE, 3), np.uint8)
    video[:, :, 0] = ramp[:, None, None]
    for row in range(rows):
        place = rng.integers(SIDE, SIZE - 2 * SIDE, 2)
        for t in range(frames):
            top, left = place.clip(0, SIZE - SIDE)
            video[row, t, 0, top : top + SIDE, left : left + SIDE] = (240, 200, 60)
            place = np.array([top, left]) + actions[row, t].astype(int)
    video[:, :, 1] = video[:, :, 0, :, ::-1]
    return video[:, 0], video, actions


def test_own_histories_grow_from_nothing_to_the_whole_window() -> None:
    told = DiffusionTrainingConfig(
        steps=100, clips_per_window=9, own_history_from=0.2, own_history_grown=0.6, warmup_steps=1
    )
    assert [own_clips(told, step) for step in (0, 19, 40, 60, 99)] == [1, 1, 5, 9, 9]
    at_once = told.model_copy(update={"own_history_from": 0.0, "own_history_grown": 0.0})
    assert own_clips(at_once, 0) == 9
    with pytest.raises(ConfigError, match="before they begin"):
        DiffusionTrainingConfig(own_history_from=0.5, own_history_grown=0.4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the trainer asked the network, and what it answered, clip by clip."""
    calls: list[dict] = []

    def watched(network, state: torch.Tensor, time: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        made = predict_clip(network, state, time, inputs)
        calls.append({"state": state, "time": time, "inputs": inputs, "made": made.detach()})
        return made

    monkeypatch.setattr(pretraining, "predict_clip", watched)
    return calls


def test_histories_are_real_frames_or_own_predictions_as_a_decoder_shows_them(asked: list[dict]) -> None:
    """Two of four rows continue their own clips: each is rounded to uint8 and is the newest frame of the next input."""
    made = trainer(history=(0,), own_history_from=0.0, own_history_grown=0.0)
    _, frames, actions = squares(0, frames=4)
    assert made.step(frames[:, 0], frames, actions)["own_clips"] == len(asked) == 3
    own = 0
    for number in (1, 2):
        before, after = asked[number - 1], asked[number]
        clean = after["inputs"].level == 0
        shown = clip_to_bytes(after["inputs"].newest)
        predicted = clip_to_bytes(before["made"])
        for row in range(4):
            real = torch.equal(shown[row, 0], torch.from_numpy(frames[row, number]))
            mine = torch.equal(shown[row], predicted[row])
            assert real or mine or not clean[row]  # noise is on real histories alone
            if mine:
                assert (
                    float(before["time"][row]) == 1.0
                )  # noise alone: the prediction has not seen its target
                assert float(after["inputs"].level[row]) == 0
            own += mine
    assert own == 2 * 2


def test_loss_against_a_separate_computation(asked: list[dict]) -> None:
    made = trainer(own_history=0.0)
    told = made.config.noise
    _, frames, actions = squares(1)
    found = made.step(frames[:, 0], frames, actions)
    losses = []
    for number, call in enumerate(asked):
        target = frames[:, 2 + number].astype(np.float64) / 127.5 - 1
        error = ((call["made"][:, :, 0].permute(0, 1, 3, 4, 2).double().numpy() - target) ** 2).mean(
            (1, 2, 3, 4)
        )
        signal = 1 / call["time"].double().numpy() - 1  # the inverse of the noise-to-signal ratio
        weight = np.minimum(1 + signal**2, told.loss_weight_limit)
        losses.append((weight * error).mean() / told.residual_scale**2)
        assert (call["time"] == 1).sum() >= 2  # half of the samples are noise alone
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_states_are_made_by_the_schedule_and_hold_no_target_at_time_one(asked: list[dict]) -> None:
    """Noise does not depend on frames, so in two trainings on other targets the pure states are the same."""
    _, frames, actions = squares(2)
    changed = frames.copy()
    changed[:, 4] = 255 - changed[:, 4]  # the last clip's target
    for video in (frames, changed):
        trainer(own_history=0.0).step(video[:, 0], video, actions)
    last, other = asked[2], asked[5]
    pure = last["time"] == 1
    assert torch.equal(last["state"][pure], other["state"][pure])
    assert not torch.equal(last["state"][~pure], other["state"][~pure])
    target = clip_of(torch.from_numpy(frames[:, 4:5]))
    clean = residual_of(target, last["inputs"], 0.15)
    noise = last["state"][~pure] - (1 - last["time"][~pure]).view(-1, 1, 1, 1, 1, 1) * clean[~pure]
    noise = noise / last["time"][~pure].view(-1, 1, 1, 1, 1, 1)
    torch.testing.assert_close(noisy(clean[~pure], noise, last["time"][~pure]), last["state"][~pure])
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_a_resumed_training_is_the_uninterrupted_one() -> None:
    straight = trainer(own_history_from=0.1)
    for number in range(12):
        straight.step(*squares(number))
        if number == 7:
            kept = copy.deepcopy(straight.state_dict())
    resumed = trainer(own_history_from=0.1)
    resumed.load_state_dict(kept)
    for number in range(8, 12):
        resumed.step(*squares(number))
    for ours, theirs in zip(resumed.result().parameters(), straight.result().parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(resumed.plain.parameters(), straight.plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_steps_seeds_and_ranks_draw_differently() -> None:
    told, batch = config(), squares(0)
    losses = set()
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(7)
        made = DiffusionTrainer(Denoiser(told.denoiser), told, SCALING, None, seed=seed, rank=rank)
        losses.add(made.step(*batch)["loss"])
        losses.add(made.step(*batch)["loss"])
    assert len(losses) == 6


def test_a_short_training_beats_copying_and_uses_the_actions() -> None:
    """On windows that it never saw: about half the error of copying, and wrong actions cost the gain."""
    made = trainer(history=(0,), steps=160, clips_per_window=1, learning_rate=4e-3)
    for number in range(160):
        made.step(*squares(number, rows=8, frames=2))
    reference, frames, actions = map(torch.from_numpy, squares(10_000, rows=32, frames=2))
    noise = torch.randn(32, 2, 1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def error(done: torch.Tensor) -> float:
        seen = inputs_of(frames[:, :1], reference, done[:, :1], made.config.denoiser, SCALING)
        clip = sample_clip(made.result(), noise, seen, steps=1, scale=made.config.noise.residual_scale)
        return float((clip_to_bytes(clip).float() - frames[:, 1:].float()).square().mean())

    copied = float((frames[:, 0].float() - frames[:, 1].float()).square().mean())
    assert error(actions) < 0.55 * copied
    assert error(actions.roll(1, 0)) > 1.7 * error(actions)
