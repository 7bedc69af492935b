"""Sampling: support, frequencies, reproducibility, and log-probabilities whatever the temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from roboalign_ray.config import SamplingConfig
from roboalign_ray.world_model.token.sampling import Sampler, uniforms


def draw(logits, count, **config):
    rows = logits.expand(count, -1).contiguous()
    return Sampler(SamplingConfig(**config)).draw(rows, torch.from_numpy(uniforms(list(range(count)), 1)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature):
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    tokens, _ = draw(logits, 20_000, temperature=temperature)
    expected = (logits / temperature).double().softmax(-1).numpy() * 20_000
    assert stats.chisquare(np.bincount(tokens[:, 0], minlength=5), expected).pvalue > 1e-3


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_support_and_frequencies(top_k):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    tokens, _ = draw(logits, 5000, top_k=top_k)
    best = logits.topk(top_k).indices
    assert set(tokens[:, 0].tolist()) <= set(best.tolist())
    expected = logits[best].double().softmax(-1).numpy() * 5000
    counts = np.array([(tokens[:, 0] == token).sum() for token in best])
    assert top_k == 1 or stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "config", [{}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 5}, {"top_k": 999}]
)
def test_logprobs_are_the_models_own(config):
    logits = 3 * torch.randn(64, 40, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = Sampler(SamplingConfig(**config)).draw(
        logits.clone(), torch.from_numpy(uniforms(list(range(64)), 1))
    )
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(-1, tokens), atol=1e-6, rtol=1e-6)


def test_temperature_zero_takes_the_most_likely():
    logits = torch.randn(100, 30)
    tokens, _ = Sampler(SamplingConfig(temperature=0)).draw(logits, torch.rand(100, 1))
    torch.testing.assert_close(tokens[:, 0], logits.argmax(-1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-200, 200, width=32), min_size=2, max_size=20), st.integers(0, 2**32))
def test_never_a_token_of_probability_zero(values, seed):
    logits = torch.tensor([values])
    for uniform in (torch.from_numpy(uniforms([seed], 1)), torch.tensor([[1 - 2.0**-22]]), torch.zeros(1, 1)):
        tokens, _ = Sampler(SamplingConfig()).draw(logits.clone(), uniform)
        assert logits.softmax(-1)[0, tokens[0, 0]] > 0


@given(st.integers(0, 2**128 - 1), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_uniforms_depend_on_the_seed_alone_and_only_append(seed, short, extra):
    longer = uniforms([5, seed], short + extra)
    np.testing.assert_array_equal(uniforms([seed], short)[0], longer[1, :short])
    assert longer.min() >= 0
    assert longer.max() < 1
