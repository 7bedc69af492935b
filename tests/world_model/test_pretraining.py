"""The pre-training step: what it feeds the model, its loss against an independent computation, exact resumption."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from roboalign_ray.config import PretrainingConfig, TokenizerConfig, WorldModelConfig
from roboalign_ray.foundation.optimisation import learning_rate_factor
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.tokenizer.training import to_unit_frames
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.pretraining import SlotPredictor, WorldModelTrainer, tokenize_windows
from roboalign_ray.world_model.token.transformer import build_model

TOKENIZER = TokenizerConfig(
    height=16, width=16, stem=4, downsample=4, channels=(16,), blocks=1, latent=8, levels=(4, 4)
)
WORLD_MODEL = WorldModelConfig(
    hidden=32, layers=2, heads=2, kv_heads=2, ffn=48, action_dims=2, window_frames=4
)
CONFIG = PretrainingConfig(steps=50, learning_rate=3e-3, warmup_steps=5, precision="float32", ema_decay=0.9)
LAYOUT = SequenceLayout.from_config(TOKENIZER, WORLD_MODEL, 8)


def parts(config=CONFIG):
    torch.manual_seed(0)
    tokenizer = DualBranchTokenizer(TOKENIZER).eval()
    return WorldModelTrainer(
        SlotPredictor(build_model(WORLD_MODEL, LAYOUT), LAYOUT), tokenizer, LAYOUT, config
    )


def batch(seed, size=3, frames=4):
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (size, frames, 16, 16, 3), dtype=np.uint8)
    return video[:, 0], video, rng.integers(0, 8, (size, frames, 2))


def test_sequences_hold_the_codes_and_bins_of_their_window():
    trainer = parts()
    context, frames, actions = batch(0)
    ids = tokenize_windows(trainer.tokenizer, LAYOUT, context, frames, actions).numpy()
    assert ids.shape == (3, LAYOUT.length(4) - LAYOUT.action_tokens)
    codes = trainer.tokenizer.encode_context(to_unit_frames(context))
    np.testing.assert_array_equal(ids[:, : LAYOUT.context_tokens] - LAYOUT.context_range[0], codes)
    at = LAYOUT.context_tokens + LAYOUT.dynamics_tokens
    np.testing.assert_array_equal(ids[:, at : at + 2] - LAYOUT.action_range[0], actions[:, 0])


def test_loss_is_the_cross_entropy_of_dynamics_tokens_within_their_vocabulary():
    trainer = parts()
    ids = tokenize_windows(trainer.tokenizer, LAYOUT, *batch(1))
    loss, accuracy = trainer.loss(ids, 4)
    with torch.no_grad():
        logits = trainer.plain(ids).logits  # the whole vocabulary, every position: the long way round
    expected, hits = [], []
    for position in LAYOUT.predicted(4):
        inside = logits[:, position - 1, : LAYOUT.codes]
        expected.append(torch.nn.functional.cross_entropy(inside, ids[:, position]))
        hits.append((inside.argmax(-1) == ids[:, position]).float().mean())
    assert float(loss.detach()) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert float(accuracy) == pytest.approx(float(torch.stack(hits).mean()))


def test_context_actions_and_start_frame_carry_no_loss():
    predicted = set(LAYOUT.predicted(4).tolist())
    given = LAYOUT.context_tokens + LAYOUT.dynamics_tokens
    assert min(predicted) == given + LAYOUT.action_tokens
    assert len(predicted) == 3 * LAYOUT.dynamics_tokens


def test_a_short_training_learns_and_resumes_exactly():
    trainer = parts()
    history = [trainer.step(*batch(seed % 2))["loss"] for seed in range(50)]
    assert history[-1] < 0.7 * history[0]

    resumed = parts()
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert resumed.step(*batch(9)) == trainer.step(*batch(9))
    for ours, theirs in zip(resumed.result().parameters(), trainer.result().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_learning_rate_in_closed_form():
    def factor(step, schedule):
        return learning_rate_factor(step, warmup=4, total=12, schedule=schedule, floor=0.1)

    assert [factor(step, "constant") for step in (0, 3, 4, 100)] == [0.25, 1.0, 1.0, 1.0]
    assert factor(4, "cosine") == 1.0
    assert factor(8, "cosine") == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor(12, "cosine") == pytest.approx(0.1)
    assert factor(500, "cosine") == pytest.approx(0.1)
