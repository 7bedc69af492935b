"""A tiny world model, and a deterministic stand-in for the tokenizer that is fast and as coarse as it looks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from roboalign_ray.config import RefreshConfig, RolloutConfig, SamplingConfig, WorldModelConfig
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.token.engine import RolloutEngine
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import build_model

LAYOUT = SequenceLayout(context_tokens=16, dynamics_tokens=4, action_tokens=3, codes=37, action_bins=11)
# Bins of width 1 from 0 on: an action is the number of its bin.
BINNER = ActionBinner((0.0,) * 3, (float(LAYOUT.action_bins),) * 3, LAYOUT.action_bins)
CONFIG = WorldModelConfig(hidden=32, layers=3, heads=4, kv_heads=4, ffn=48, action_dims=3)


class BlockTokenizer:
    """Block means, quantised: 4x4 context blocks of 2x2 pixels, 2x2 dynamics blocks shifted by a context code."""

    frame_size = 8, 8

    def encode_context(self, frames):
        means = torch.nn.functional.adaptive_avg_pool2d(frames.mean(1, keepdim=True), 4).flatten(1)
        return (means * (LAYOUT.codes - 1)).round().long()

    def context_features(self, codes):
        return codes

    def encode_dynamics(self, frames, context_codes):
        batch, time = frames.shape[:2]
        grey = frames.flatten(0, 1).mean(1, keepdim=True)
        means = torch.nn.functional.adaptive_avg_pool2d(grey, 2).view(batch, time, 4)
        codes = (means * (LAYOUT.codes - 1)).round().long()
        return (codes + context_codes[:, None, :1]) % LAYOUT.codes

    def decode_dynamics(self, codes, context_codes):
        grey = ((codes - context_codes[:, None, :1]) % LAYOUT.codes).float() / (LAYOUT.codes - 1)
        blocks = grey.unflatten(-1, (2, 2)).repeat_interleave(4, -1).repeat_interleave(4, -2)
        return blocks[:, :, None].expand(-1, -1, 3, -1, -1)


@pytest.fixture(scope="module", params=["native", "PyTorch"])
def kernels(request) -> Iterator[str]:
    """Engines made in the test run their forward pass in C, or on PyTorch's kernels."""
    if request.param == "native" and not shutil.which("cc"):
        pytest.skip("no C compiler on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBOALIGN_NATIVE", "1" if request.param == "native" else "0")
        yield request.param


@pytest.fixture(scope="session")
def layout() -> SequenceLayout:
    return LAYOUT


def tiny_model(seed: int = 0, **changes):
    """A model whose predictions are far from uniform: weights ten times the usual initial ones, norms not all ones."""
    torch.manual_seed(seed)
    model = build_model(WorldModelConfig(**{**CONFIG.model_dump(), **changes}), LAYOUT).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(torch.rand_like(weight) + 0.5) if "norm" in name else weight.mul_(10)
    return model


@pytest.fixture(scope="session")
def make_model():
    return tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def block_tokenizer():
    return BlockTokenizer()


@pytest.fixture(scope="session")
def make_engine(model, block_tokenizer):
    def make(policy="none", window=3, *, of=None, temperature=1.0, top_k=0, precision="float32", **refresh):
        config = RolloutConfig(
            refresh=RefreshConfig(policy=policy, window=window, **refresh),
            sampling=SamplingConfig(temperature=temperature, top_k=top_k),
            precision=precision,
        )
        return RolloutEngine(of or model, block_tokenizer, LAYOUT, BINNER, config)

    return make


@pytest.fixture(scope="session")
def make_prompt():
    def make(seed: int, horizon: int) -> Prompt:
        generator = np.random.default_rng(seed)
        context, start = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        actions = generator.integers(0, LAYOUT.action_bins, (horizon, LAYOUT.action_tokens))
        return Prompt(f"prompt-{seed}", context, start, actions, "push the block")

    return make
