"""The dual-branch tokenizer: shapes from config alone, what each branch may see, files, and that it learns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from roboalign_ray.config import TokenizerConfig, TokenizerTrainingConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.tokenizer.training import TokenizerTrainer, code_usage

SMALL = TokenizerConfig(height=32, width=32, stem=4, downsample=8, channels=(16, 32), blocks=1, latent=16)
SHAPES = {
    "wide": TokenizerConfig(
        height=32, width=48, stem=2, downsample=8, channels=(16, 16, 32), blocks=1, latent=8
    ),
    "no_stem": TokenizerConfig(
        height=16, width=16, stem=1, downsample=4, channels=(16, 16, 16), blocks=1, latent=8
    ),
    "patch_1": TokenizerConfig(
        height=16, width=32, stem=4, downsample=8, dynamics_patch=1, channels=(16, 32), latent=8
    ),
}


def tokenizer(config=SMALL, seed=0) -> DualBranchTokenizer:
    torch.manual_seed(seed)
    model = DualBranchTokenizer(config)
    for parameter in model.parameters():  # zero-initialised layers would hide what depends on what
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def frames(config, batch=2, time=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    context = torch.rand(batch, 3, config.height, config.width, generator=generator)
    return context, torch.rand(batch, time, 3, config.height, config.width, generator=generator)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_any_resolution_and_grid_follow_from_the_config(config):
    model = tokenizer(config)
    context, video = frames(config)
    context_codes = model.encode_context(context)
    codes = model.encode_dynamics(video, context_codes)
    assert context_codes.shape == (2, config.context_tokens)
    assert codes.shape == (2, 3, config.dynamics_tokens)
    assert model.decode_context(context_codes).shape == context.shape
    decoded = model.decode_dynamics(codes, context_codes)
    assert decoded.shape == video.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_the_papers_layout_has_1280_and_80_tokens():
    config = TokenizerConfig(
        height=256, width=320, stem=1, downsample=8, dynamics_patch=4, channels=(8, 8, 8, 8)
    )
    assert (config.context_grid, config.dynamics_grid) == ((32, 40), (8, 10))
    assert (config.context_tokens, config.dynamics_tokens, config.codes) == (1280, 80, 4375)


def test_training_and_inference_paths_agree():
    model = tokenizer()
    context, video = frames(SMALL)
    with torch.no_grad():
        result = model(context, video)
    context_codes = model.encode_context(context)
    codes = model.encode_dynamics(video, context_codes)
    torch.testing.assert_close(result.context_codes, context_codes)
    torch.testing.assert_close(result.dynamics_codes, codes)
    torch.testing.assert_close(result.dynamics.clamp(0, 1), model.decode_dynamics(codes, context_codes))
    torch.testing.assert_close(result.context.clamp(0, 1), model.decode_context(context_codes))


def test_frames_of_a_window_do_not_see_one_another_but_all_see_the_context():
    model = tokenizer()
    context, video = frames(SMALL)
    context_codes = model.encode_context(context)
    together = model.encode_dynamics(video, context_codes)
    alone = torch.cat([model.encode_dynamics(video[:, t : t + 1], context_codes) for t in range(3)], dim=1)
    torch.testing.assert_close(together, alone)
    other = model.encode_context(1 - context)
    assert not torch.equal(context_codes, other)
    assert not torch.allclose(
        model.decode_dynamics(together, context_codes), model.decode_dynamics(together, other)
    )


def test_one_context_serves_each_row_of_the_batch():
    model = tokenizer()
    context, video = frames(SMALL, batch=3)
    context_codes = model.encode_context(context)
    codes = model.encode_dynamics(video, context_codes)
    for row in range(3):
        torch.testing.assert_close(
            model.encode_dynamics(video[row : row + 1], context_codes[row : row + 1]), codes[row : row + 1]
        )


def test_rows_that_share_a_context_have_its_features_computed_once():
    model = tokenizer()
    context, video = frames(SMALL, batch=4)
    codes = model.encode_context(context)[[0, 0, 1, 0]]
    computed = []
    model.context_decoder.stem.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    features = model.context_features(codes)
    assert computed == [2]
    tokens = model.encode_dynamics(video, features)
    decoded = model.decode_dynamics(tokens, features)
    assert computed == [2]
    for row in range(4):
        own = codes[row : row + 1]
        torch.testing.assert_close(model.encode_dynamics(video[row : row + 1], own)[0], tokens[row])
        torch.testing.assert_close(model.decode_dynamics(tokens[row : row + 1], own)[0], decoded[row])


def test_save_and_load_give_the_same_tokenizer(tmp_path):
    model = tokenizer()
    context, video = frames(SMALL)
    model.save(tmp_path / "t")
    loaded = DualBranchTokenizer.load(tmp_path / "t")
    torch.testing.assert_close(loaded.encode_context(context), model.encode_context(context))
    codes = model.encode_context(context)
    torch.testing.assert_close(loaded.encode_dynamics(video, codes), model.encode_dynamics(video, codes))


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="missing"):
        DualBranchTokenizer.load(tmp_path)
    tokenizer().save(tmp_path)
    weights = tmp_path / "tokenizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        DualBranchTokenizer.load(tmp_path)


def test_wrong_frame_size_is_refused():
    with pytest.raises(UserError, match="the tokenizer takes"):
        tokenizer().encode_context(torch.rand(1, 3, 32, 40))


def moving_squares(batch: int, time: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on a gradient, somewhere else in each frame."""
    rng = np.random.default_rng(seed)
    base = np.linspace(0, 120, 32, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    video = np.broadcast_to(base, (batch, time + 1, 32, 32, 3)).copy()
    for b in range(batch):
        for t in range(time + 1):
            y, x = rng.integers(0, 24, 2)
            video[b, t, y : y + 8, x : x + 8] = 250
    return video[:, 0], video[:, 1:]


def test_a_short_training_reconstructs_uses_codes_and_resumes_exactly():
    torch.manual_seed(0)
    config = TokenizerTrainingConfig(
        steps=60, learning_rate=3e-3, warmup_steps=5, perceptual_weight=0, precision="float32", ema_decay=0.9
    )
    trainer = TokenizerTrainer(DualBranchTokenizer(SMALL), config, None)
    history = [trainer.step(*moving_squares(4, 3, seed)) for seed in range(60)]
    assert history[-1]["psnr_dynamics"] > history[0]["psnr_dynamics"] + 5
    assert history[-1]["dynamics_codes_used"] > 10

    resumed = TokenizerTrainer(DualBranchTokenizer(SMALL), config, None)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    batch = moving_squares(4, 3, 99)
    assert resumed.step(*batch) == trainer.step(*batch)
    for ours, theirs in zip(resumed.result().parameters(), trainer.result().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_adversary_starts_when_told():
    config = TokenizerTrainingConfig(
        steps=4, gan_weight=0.1, gan_start=2, perceptual_weight=0, precision="float32", warmup_steps=0
    )
    trainer = TokenizerTrainer(DualBranchTokenizer(SMALL), config, None)
    seen = ["discriminator" in trainer.step(*moving_squares(2, 2, seed)) for seed in range(4)]
    assert seen == [False, False, True, True]


def test_code_usage_in_closed_form():
    usage = code_usage(torch.tensor([0, 0, 1, 1]), size=10)
    assert usage["codes_used"] == 2
    assert usage["perplexity"] == pytest.approx(2.0)
