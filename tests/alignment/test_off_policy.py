"""Off-policy corrections against NumPy written from their formulas, and plain GRPO where nothing is stale."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from roboalign_ray.alignment.objectives.grpo import GrpoObjective
from roboalign_ray.alignment.objectives.off_policy import (
    DecoupledLoss,
    TruncatedLoss,
    importance_weights,
    token_loss,
)
from roboalign_ray.alignment.objectives.token_batch import TrainingSequence, micro_batches
from roboalign_ray.alignment.objectives.token_loss import GrpoLoss, TokenBatch
from roboalign_ray.alignment.objectives.token_policy import TokenPolicy, predict_batch
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import policy_update
from roboalign_ray.config import AlignmentConfig, WorldModelConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment
from roboalign_ray.world_model.token.transformer import build_model

CONFIG = AlignmentConfig(clip=0.2, dual_clip=3.0, kl_coefficient=0.02)
DECOUPLED, TRUNCATED = (OffPolicyConfig(correction=c, truncation=1.5) for c in ("decoupled", "truncated"))
LAYOUT = SequenceLayout(context_tokens=4, dynamics_tokens=3, action_tokens=2, codes=12, action_bins=5)


def draw(seed, rows=6, tokens=11, spread=0.6, dtype=torch.float64):
    generator = np.random.default_rng(seed)
    new = -generator.uniform(0.1, 6, (rows, tokens))
    proximal = new + 0.3 * generator.normal(size=new.shape)
    behaviour = proximal + spread * generator.normal(size=new.shape)
    reference = new + 0.5 * generator.normal(size=new.shape)
    stale = generator.uniform(size=new.shape) < 0.6
    proximal = np.where(stale, proximal, behaviour)
    mask = (generator.uniform(size=new.shape) < 0.8).astype(np.float64)
    mask[0, 0] = 1
    advantages = generator.normal(size=(rows, 1))
    values = (new, behaviour, reference, advantages, mask)
    new, behaviour, reference, advantages, mask = (torch.tensor(v, dtype=dtype) for v in values)
    return TokenBatch(
        new.requires_grad_(),
        behaviour,
        reference,
        advantages,
        mask,
        stale=torch.from_numpy(stale),
        proximal=torch.tensor(proximal, dtype=dtype),
    )


def numpy_loss(batch, correction, *, clip, dual, beta, truncation):
    """Token by token; also the gradient by log pi."""
    new, old, prox, ref, mask = (
        t.detach().numpy()
        for t in (batch.logprobs, batch.behaviour, batch.proximal, batch.reference, batch.mask)
    )
    loss, gradient = 0.0, np.zeros_like(new)
    for b, n in np.ndindex(*mask.shape):
        if not mask[b, n]:
            continue
        a, old_or_prox = float(batch.advantages[b, 0]), prox[b, n]
        if correction == "truncated" and bool(batch.stale[b, n]):
            weight = min(np.exp(new[b, n] - old[b, n]), truncation)
            objective, slope = weight * a, weight * a
        else:
            weight = min(np.exp(prox[b, n] - old[b, n]), truncation) if correction == "decoupled" else 1.0
            if correction == "truncated":
                old_or_prox = old[b, n]
            u = np.exp(new[b, n] - old_or_prox)
            inner = min(u * a, min(max(u, 1 - clip), 1 + clip) * a)
            inner = max(inner, dual * a) if a < 0 else inner
            objective, slope = weight * inner, weight * u * a * (inner == u * a)
        d = ref[b, n] - new[b, n]
        loss += -objective + beta * (np.exp(d) - d - 1)
        gradient[b, n] = -slope + beta * (1 - np.exp(d))
    return loss / mask.sum(), gradient / mask.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [DECOUPLED, TRUNCATED], ids=["decoupled", "truncated"])
def test_against_numpy(settings, seed):
    batch = draw(seed)
    loss, metrics = token_loss(CONFIG, settings)(batch, float(batch.mask.sum()))
    loss.backward()
    expected, gradient = numpy_loss(
        batch, settings.correction, clip=0.2, dual=3.0, beta=0.02, truncation=settings.truncation
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(batch.logprobs.grad.numpy(), gradient, rtol=1e-7, atol=1e-12)
    assert float(metrics["stale_fraction"]) == pytest.approx(
        float((batch.stale * batch.mask).sum() / batch.mask.sum())
    )
    assert 0 < float(metrics["importance_cut"]) < 1


def loss_and_gradient(objective, batch):
    logprobs = batch.logprobs.detach().clone().requires_grad_()
    loss, metrics = objective(replace(batch, logprobs=logprobs), float(batch.mask.sum()))
    loss.backward()
    return loss.detach(), logprobs.grad, metrics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoupled_is_grpo_bit_for_bit_where_proximal_and_behaviour_are_one(dtype):
    batch = draw(3, dtype=dtype)
    batch = replace(batch, proximal=batch.behaviour.clone())
    plain = loss_and_gradient(GrpoLoss(CONFIG), batch)
    for stale in (batch.stale, torch.ones_like(batch.stale), None):
        corrected = loss_and_gradient(DecoupledLoss(CONFIG, DECOUPLED), replace(batch, stale=stale))
        assert torch.equal(corrected[0], plain[0])
        assert torch.equal(corrected[1], plain[1])
        assert all(torch.equal(corrected[2][name], value) for name, value in plain[2].items())
        assert float(corrected[2]["importance_mean"]) == pytest.approx(1)


def test_truncated_is_grpo_bit_for_bit_on_policy_and_where_nothing_is_stale():
    batch = draw(4, dtype=torch.float32)
    none = replace(batch, stale=torch.zeros_like(batch.stale))
    plain = loss_and_gradient(GrpoLoss(CONFIG), batch)
    assert all(map(torch.equal, loss_and_gradient(TruncatedLoss(CONFIG, TRUNCATED), none)[:2], plain[:2]))
    same = replace(batch, behaviour=batch.logprobs.detach())
    plain = loss_and_gradient(GrpoLoss(CONFIG), same)
    assert all(map(torch.equal, loss_and_gradient(TruncatedLoss(CONFIG, TRUNCATED), same)[:2], plain[:2]))


@pytest.mark.parametrize("settings", [DECOUPLED, TRUNCATED], ids=["decoupled", "truncated"])
def test_masked_tokens_may_hold_anything_and_far_ones_stay_finite(settings):
    batch = draw(5, dtype=torch.float32)
    batch.mask[1, 2] = 0
    objective = token_loss(CONFIG, settings)
    plain = loss_and_gradient(objective, batch)
    for values in (batch.logprobs.data, batch.behaviour, batch.reference, batch.proximal):
        values[1, 2] = float("nan")
    holed = loss_and_gradient(objective, batch)
    assert torch.equal(plain[0], holed[0])
    assert torch.equal(plain[1], holed[1])
    batch.behaviour[0, 0], batch.stale[0, 0] = -500.0, True
    loss, gradient, metrics = loss_and_gradient(objective, batch)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert float(metrics["importance_mean"]) <= 1.5


def test_weights_are_truncated():
    target, behaviour = torch.log(torch.tensor([[0.2, 0.4, 0.9]])), torch.log(torch.tensor([[0.4, 0.4, 0.3]]))
    weights, cut = importance_weights(target, behaviour, torch.ones(1, 3), 2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.0, 2.0]]))
    assert cut.tolist() == [[False, False, True]]


def test_marks_line_up_with_micro_batches():
    generator = np.random.default_rng(0)
    sequences = []
    for _ in range(23):
        frames = int(generator.integers(2, 5))
        length, trained = 4 + 5 * frames, 3 * (frames - 1)
        version = int(generator.integers(0, 4))
        # the version also stands in the ids, to be found again
        ids = np.full(length, version, np.int64)
        behaviour = np.zeros(trained, np.float32)
        sequences.append(TrainingSequence(ids, frames, frames - 1, behaviour, behaviour, version))
    for rank in range(3):
        batches = micro_batches(sequences, 60, rank=rank, ranks=3)
        assert batches
        for batch in batches:
            mask = batch.older_than(2)
            assert mask.shape == batch.behaviour.shape
            np.testing.assert_array_equal(mask.all(1), batch.ids[:, 0] < 2)
            np.testing.assert_array_equal(mask.any(1), mask.all(1))
            assert batch.older_than(None).all()
            assert not batch.older_than(0).any()


class PlainPolicy:
    """A module with SGD."""

    layout, device = LAYOUT, torch.device("cpu")

    def __init__(self, module):
        self.module, self.optimizer = module, torch.optim.SGD(module.parameters(), 0.05)

    def predict(self, batch):
        return predict_batch(self.module, batch)

    def backward(self, loss, last):
        loss.backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()
        return 0.0


def made_group(seed, versions):
    """Rollouts of some other policy, one segment per version."""
    generator = np.random.default_rng(seed)

    def segment(version):
        return TokenSegment(
            generator.integers(0, 12, (1, 4), dtype=np.int32),
            generator.integers(0, 12, (1, 1, 3), dtype=np.int32),
            generator.integers(0, 5, (2, 2), dtype=np.int32),
            generator.integers(0, 12, (4, 2, 3), dtype=np.int32),
            -generator.uniform(1.5, 3.5, (4, 2, 3)).astype(np.float32),
            version,
        )

    segments = tuple(segment(version) for version in versions)
    rollout = Rollout("p", "", (0, 1, 2, 3), TokenPayload(segments), RolloutCost(np.zeros(2 * len(versions))))
    return ScoredGroup(rollout, tuple(Scored(float(r)) for r in generator.uniform(size=4)))


def trained(module, groups, settings, version):
    policy, reference = PlainPolicy(copy.deepcopy(module)), copy.deepcopy(module)
    config = AlignmentConfig(prompts_per_update=2, minibatch_prompts=1, group_size=4, micro_batch_tokens=40)
    objective = GrpoObjective(config, settings)
    objective.layout, objective.reference = LAYOUT, lambda batch: predict_batch(reference, batch)
    result = policy_update(policy, groups, config, objective, version=version)
    return policy.module.state_dict(), result.metrics


def test_updates():
    torch.manual_seed(0)
    sizes = WorldModelConfig(hidden=16, layers=1, heads=2, kv_heads=2, ffn=24, action_dims=2)
    module = TokenPolicy(build_model(sizes, LAYOUT), LAYOUT)
    groups = [made_group(0, (3, 3)), made_group(1, (2, 3))]
    plain, _ = trained(module, groups, OffPolicyConfig(), 2)
    for settings in (DECOUPLED, TRUNCATED):
        # nothing is older than version 2: the very same weights come out
        fresh, metrics = trained(module, groups, settings, 2)
        assert all(torch.equal(value, plain[name]) for name, value in fresh.items())
        assert metrics["stale_fraction"] == 0
        # a quarter of the tokens is older than version 3, all of them in the second step
        partly, metrics = trained(module, groups, settings, 3)
        assert metrics["stale_fraction"] == pytest.approx(0.25)
        assert any(not torch.equal(value, plain[name]) for name, value in partly.items())
        _, metrics = trained(module, groups, settings, None)
        assert metrics["stale_fraction"] == pytest.approx(1)
