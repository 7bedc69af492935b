"""KL estimators against closed forms and against the exact KL of categorical distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.objectives.kl import EXPONENT_BOUND, kl_bounded, kl_estimate
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_and_its_gradient_are_exact_up_to_the_bound_and_the_tangent_beyond(dtype):
    d = torch.tensor(
        [-300.0, -20.0, -1.0, 0.0, 1e-3, 3.0, 19.5, EXPONENT_BOUND, 20.5, 99.0, 3e4], dtype=dtype
    )
    policy = torch.zeros_like(d).requires_grad_()
    value = kl_estimate("k3", policy, d)
    value.sum().backward()
    slope = math.exp(EXPONENT_BOUND) - 1
    for x, found, gradient in zip(d.tolist(), value.tolist(), policy.grad.tolist(), strict=True):
        inside = min(x, EXPONENT_BOUND)
        expected = math.expm1(inside) - inside + slope * (x - inside)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert -gradient == pytest.approx(math.exp(inside) - 1, rel=1e-5, abs=2e-7)  # a rounding of 1


def test_the_estimators_name_the_tokens_that_they_bound():
    policy, reference = torch.tensor([-100.0, -21.0, -20.0, 0.0]), torch.tensor([-1.0, -0.5, 0.0, -100.0])
    assert kl_bounded("k3", policy, reference).tolist() == [True, True, False, False]
    for name in ("k1", "k2"):
        assert not kl_bounded(name, policy, reference).any()


def test_unknown_name():
    with pytest.raises(UserError, match="k1, k2, k3"):
        kl_estimate("k4", torch.zeros(1), torch.zeros(1))
