"""The GRPO loss against NumPy written from the papers' formulas, and invariants of its gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.alignment.objectives.protocol import merge_metrics
from roboalign_ray.alignment.objectives.token_loss import GrpoLoss, TokenBatch, grpo_loss
from roboalign_ray.config import AlignmentConfig


def numpy_grpo(new, old, reference, advantage, mask, *, clip, dual, beta):
    """Token by token, as the papers write it: clipped surrogate, dual clip where A < 0, k3 KL, token mean."""
    total = 0.0
    for b, n in np.ndindex(*mask.shape):
        if not mask[b, n]:
            continue
        rho, a = np.exp(new[b, n] - old[b, n]), advantage[b]
        objective = min(rho * a, min(max(rho, 1 - clip), 1 + clip) * a)
        if dual and a < 0:
            objective = max(objective, dual * a)
        d = reference[b, n] - new[b, n]
        total += -objective + beta * (np.exp(d) - d - 1)
    return total / mask.sum()


def publicly_documented_loss(new, old, reference, advantage, mask, *, clip, dual, beta):
    """The form of public trainers: losses, not objectives, so maxima become minima and c enters as -c A."""
    ratio = np.exp(new - old)
    a = np.broadcast_to(advantage[:, None], ratio.shape)
    first, second = -a * ratio, -a * np.clip(ratio, 1 - clip, 1 + clip)
    clipped = np.maximum(first, second)
    lower_bounded = np.where(a < 0, np.minimum(-a * dual, clipped), clipped)
    kl = np.exp(reference - new) - (reference - new) - 1
    return ((lower_bounded + beta * kl) * mask).sum() / mask.sum()


def draw(seed, rows=6, tokens=11, spread=1.0):
    generator = np.random.default_rng(seed)
    new = -generator.uniform(0.1, 6, (rows, tokens))
    old = new + spread * generator.normal(size=new.shape)
    reference = new + spread * generator.normal(size=new.shape)
    mask = (generator.uniform(size=new.shape) < 0.8).astype(np.float64)
    mask[0, 0] = 1
    return new, old, reference, generator.normal(size=rows), mask


def tensors(new, old, reference, advantage, mask):
    new, old, reference, mask = (torch.tensor(x) for x in (new, old, reference, mask))
    return new.requires_grad_(), old, reference, torch.tensor(advantage)[:, None], mask


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.1, 0.2]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([0.0, 0.1]),
)
def test_against_numpy(seed, clip, dual, beta):
    values = draw(seed)
    config = AlignmentConfig(clip=clip, dual_clip=dual, kl_coefficient=beta)
    loss, metrics = grpo_loss(*tensors(*values), config)
    assert float(loss.detach()) == pytest.approx(
        numpy_grpo(*values, clip=clip, dual=dual, beta=beta), rel=1e-9
    )
    if dual:
        assert float(loss.detach()) == pytest.approx(
            publicly_documented_loss(*values, clip=clip, dual=dual, beta=beta), rel=1e-9
        )
    assert 0 <= float(metrics["clip_fraction"]) <= 1


def test_on_policy_loss_is_the_kl_term_minus_the_mean_advantage():
    new, _, reference, advantage, mask = draw(3)
    config = AlignmentConfig(kl_coefficient=0.05)
    loss, metrics = grpo_loss(*tensors(new, new.copy(), reference, advantage, mask), config)
    mean_advantage = (advantage[:, None] * mask).sum() / mask.sum()
    assert float(loss.detach()) == pytest.approx(0.05 * float(metrics["reference_kl"]) - mean_advantage)
    assert float(metrics["ratio_mean"]) == pytest.approx(1.0)
    assert float(metrics["ratio_max"]) == pytest.approx(1.0)
    assert float(metrics["clip_fraction"]) == 0
    assert float(metrics["behaviour_kl"]) == pytest.approx(0, abs=1e-12)


def test_on_policy_gradient_is_reinforce():
    new, _, _, advantage, mask = draw(4)
    inputs = tensors(new, new.copy(), new.copy(), advantage, mask)
    grpo_loss(*inputs, AlignmentConfig())[0].backward()
    np.testing.assert_allclose(inputs[0].grad.numpy(), -advantage[:, None] * mask / mask.sum(), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(1, 5), min_size=0, max_size=3))
def test_micro_batches_add_up_to_the_whole_step(seed, cuts):
    values = draw(seed)
    config = AlignmentConfig(kl_coefficient=0.02)
    whole = tensors(*values)
    loss, metrics = grpo_loss(*whole, config, entropy=torch.ones(6, 11, dtype=torch.float64))
    loss.backward()

    parts, objective, collected = tensors(*values), GrpoLoss(config), []
    edges = [0, *sorted(set(cuts)), 6]
    total = 0.0
    for first, last in itertools.pairwise(edges):
        rows = [tensor[first:last] for tensor in parts]
        entropy = torch.ones_like(rows[0])
        piece, measured = objective(TokenBatch(*rows, entropy=entropy), float(values[-1].sum()))
        piece.backward()
        total += float(piece.detach())
        collected.append(measured)
    assert total == pytest.approx(float(loss.detach()), rel=1e-9)
    torch.testing.assert_close(parts[0].grad, whole[0].grad, rtol=1e-10, atol=1e-14)
    merged = merge_metrics(collected)
    assert merged.keys() == metrics.keys()
    for name, value in metrics.items():
        assert merged[name] == pytest.approx(float(value), rel=1e-9, abs=1e-12)


def test_gradient_vanishes_where_a_bound_holds():
    config = AlignmentConfig(kl_coefficient=0.0)
    old = torch.zeros(1, 4, dtype=torch.float64)
    new = torch.log(torch.tensor([[2.0, 0.5, 0.5, 2.0]], dtype=torch.float64)).requires_grad_()
    up, down = torch.tensor([[1.0, 1.0, -1.0, -1.0]]).double(), torch.ones(1, 4).double()
    _, metrics = grpo_loss(new, old, old, up, down, config)
    grpo_loss(new, old, old, up, down, config)[0].backward()
    # a good token that is likely enough already, and a bad one that is unlikely enough, are left alone
    assert (new.grad != 0).tolist() == [[False, True, False, True]]
    assert float(metrics["clip_fraction"]) == pytest.approx(0.5)


def test_a_token_far_below_the_reference_leaves_the_loss_finite_and_is_counted():
    """The policy gives it e^-99 of the reference's probability, which float32 cannot turn round."""
    config = AlignmentConfig(kl_coefficient=0.1)
    new = torch.tensor([[-100.0, -2.0, -3.0, -1.0]], requires_grad=True)
    reference, ones = torch.tensor([[-1.0, -2.0, -3.5, -1.0]]), torch.ones(1, 4)
    loss, metrics = grpo_loss(new, new.detach(), reference, torch.zeros(1, 1), ones, config)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()
    assert new.grad[0, 0] < 0  # raising its log-probability lowers the loss
    assert float(metrics["kl_bound_fraction"]) == pytest.approx(0.25)
    _, plain = grpo_loss(new, new.detach(), new.detach(), torch.zeros(1, 1), ones, config)
    assert float(plain["kl_bound_fraction"]) == 0


def test_dual_clip_bounds_the_loss_of_a_bad_token():
    new = torch.tensor([[np.log(50.0)]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    loss, _ = grpo_loss(new, zero, new.detach(), -one, one, AlignmentConfig(dual_clip=3.0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3.0)
    assert float(new.grad) == 0


def test_masked_tokens_may_hold_anything():
    new, old, reference, advantage, mask = draw(7)
    mask[2, 3] = 0
    plain = tensors(new, old, reference, advantage, mask)
    grpo_loss(*plain, AlignmentConfig())[0].backward()
    new[2, 3] = old[2, 3] = reference[2, 3] = np.nan
    holed = tensors(new, old, reference, advantage, mask)
    loss, _ = grpo_loss(*holed, AlignmentConfig())
    loss.backward()
    assert torch.isfinite(loss)
    torch.testing.assert_close(holed[0].grad, plain[0].grad)


def test_extreme_ratios_stay_finite():
    new = torch.tensor([[0.0, -300.0]], requires_grad=True)
    old = torch.tensor([[-300.0, 0.0]])
    loss, _ = grpo_loss(new, old, new.detach(), torch.ones(1, 1), torch.ones(1, 2), AlignmentConfig())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()


def test_an_empty_batch_has_zero_loss_and_gradient():
    new = torch.full((2, 3), -1.0, requires_grad=True)
    zero = torch.zeros(2, 3)
    loss, _ = grpo_loss(new, zero, zero, torch.ones(2, 1), zero, AlignmentConfig())
    loss.backward()
    assert float(loss.detach()) == 0
    assert not new.grad.any()
