"""KL estimators against closed forms and against the exact KL of categorical distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.kl import kl_estimate
from roboalign_ray.foundation.failures import UserError

logprob = st.floats(-15, 0)


@given(logprob, logprob)
def test_formulas(policy, reference):
    p, q = torch.tensor(policy, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    d = reference - policy
    assert float(kl_estimate("k1", p, q)) == pytest.approx(-d, abs=1e-12)
    assert float(kl_estimate("k2", p, q)) == pytest.approx(d * d / 2, abs=1e-12)
    assert float(kl_estimate("k3", p, q)) == pytest.approx(math.exp(d) - d - 1, rel=1e-9, abs=1e-12)
    assert float(kl_estimate("k3", p, q)) >= 0


def test_k1_and_k3_are_unbiased_under_the_policy():
    generator = torch.Generator().manual_seed(0)
    policy, reference = (
        torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0) for _ in "pq"
    )
    weights = policy.exp()
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy), torch.distributions.Categorical(logits=reference)
    )
    for name in ("k1", "k3"):
        assert float((weights * kl_estimate(name, policy, reference)).sum()) == pytest.approx(float(exact))


def test_unknown_name():
    with pytest.raises(UserError, match="k1, k2, k3"):
        kl_estimate("k4", torch.zeros(1), torch.zeros(1))
