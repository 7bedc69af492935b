"""A whole update on a tiny LLaMA: exact first step, micro-batching, ranks, and a reward that must rise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from roboalign_ray.alignment.objectives.grpo import GrpoObjective
from roboalign_ray.alignment.objectives.protocol import merge_metrics
from roboalign_ray.alignment.objectives.token_policy import TokenPolicy, predict_batch
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import policy_update
from roboalign_ray.config import AlignmentConfig, WorldModelConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment
from roboalign_ray.world_model.token.transformer import build_model

LAYOUT = SequenceLayout(context_tokens=4, dynamics_tokens=3, action_tokens=2, codes=12, action_bins=5)


class PlainPolicy:
    """A module with AdamW: what a DeepSpeed engine is compared with."""

    def __init__(self, module: TokenPolicy, config: AlignmentConfig, scale: float = 1.0) -> None:
        self.module, self.config, self.scale = module, config, scale
        self.layout, self.device = module.layout, torch.device("cpu")
        self.optimizer = torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=0.0)

    def predict(self, batch):
        return predict_batch(self.module, batch)

    def backward(self, loss, last):
        (loss * self.scale).backward()

    def step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


@pytest.fixture
def module():
    torch.manual_seed(0)
    sizes = WorldModelConfig(hidden=32, layers=2, heads=2, kv_heads=2, ffn=48, action_dims=2)
    return TokenPolicy(build_model(sizes, LAYOUT), LAYOUT)


@torch.no_grad()
def sample_segment(module, generator, samples, frames, version=0):
    """Rollouts by the slowest honest way: a full forward pass for every token."""
    numpy_generator = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    context = numpy_generator.integers(0, LAYOUT.codes, (1, 4), dtype=np.int32)
    given = numpy_generator.integers(0, LAYOUT.codes, (1, 1, 3), dtype=np.int32)
    actions = numpy_generator.integers(0, LAYOUT.action_bins, (frames, 2), dtype=np.int32)
    tokens = torch.zeros(samples, frames, 3, dtype=torch.int64)
    logprobs = torch.zeros(samples, frames, 3)
    prefix = torch.from_numpy(
        LAYOUT.assemble(
            np.repeat(context, samples, 0),
            np.repeat(given, samples, 0),
            np.repeat(actions[None, :1], samples, 0),
        )
    )
    for frame in range(frames):
        for slot in range(3):
            logits = module.model(prefix).logits[:, -1, : LAYOUT.codes]
            distribution = logits.log_softmax(-1)
            drawn = torch.multinomial(distribution.exp(), 1, generator=generator)
            tokens[:, frame, slot] = drawn[:, 0]
            logprobs[:, frame, slot] = distribution.gather(1, drawn)[:, 0]
            prefix = torch.cat([prefix, drawn], 1)
        if frame + 1 < frames:
            bins = torch.from_numpy(actions[frame + 1] + LAYOUT.action_range[0]).long()
            prefix = torch.cat([prefix, bins.expand(samples, 2)], 1)
    return TokenSegment(context, given, actions, tokens.numpy().astype(np.int32), logprobs.numpy(), version)


def sample_group(module, generator, samples=6, frames=(3, 2), failed=(), good=6):
    """Reward: the share of tokens below code `good`."""
    segments = tuple(sample_segment(module, generator, samples, n) for n in frames)
    rollout = Rollout(
        "p", "", tuple(range(samples)), TokenPayload(segments), RolloutCost(np.zeros(sum(frames)))
    )
    share = (rollout.payload.tokens < good).reshape(samples, -1).mean(1)
    scores = [Failed("lost") if i in failed else Scored(float(share[i])) for i in range(samples)]
    return ScoredGroup(rollout, tuple(scores))


def config(**changes):
    return AlignmentConfig(**({"prompts_per_update": 4, "minibatch_prompts": 2, "group_size": 6} | changes))


def grpo(settings, reference):
    """The objective over a reference model that is here already."""
    objective = GrpoObjective(settings)
    objective.layout, objective.reference = LAYOUT, reference
    return objective


def update(module, groups, settings, *, rank=0, ranks=1, reference=None):
    reference = reference or copy.deepcopy(module)
    policy = PlainPolicy(module, settings)
    return policy_update(
        policy,
        groups,
        settings,
        grpo(settings, lambda batch: predict_batch(reference, batch)),
        rank=rank,
        ranks=ranks,
    )


def test_the_first_step_is_on_policy(module):
    generator = torch.Generator().manual_seed(1)
    groups = [sample_group(module, generator, failed=(1,)) for _ in range(2)]
    result = update(module, groups, config(minibatch_prompts=2, prompts_per_update=2))
    assert result.steps == 1
    assert result.metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert result.metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert result.metrics["reference_kl"] == pytest.approx(0, abs=1e-7)
    assert result.metrics["clip_fraction"] == 0
    assert result.metrics["policy_loss"] == pytest.approx(0, abs=1e-6)  # minus the mean advantage
    assert 0 < result.metrics["entropy"] <= np.log(LAYOUT.codes)
    assert result.size == 2 * 5 * 5 * 3
    assert result.counts.failed_samples == 2


def test_a_bounded_kl_is_told_once_per_update(module, caplog):
    generator = torch.Generator().manual_seed(6)
    groups = [sample_group(module, generator) for _ in range(2)]
    frozen = copy.deepcopy(module)

    def reference(batch):
        logprobs, entropy = predict_batch(frozen, batch)
        return logprobs + 99, entropy

    settings = config(prompts_per_update=2)
    result = policy_update(PlainPolicy(module, settings), groups, settings, grpo(settings, reference))
    assert result.metrics["kl_bound_fraction"] == pytest.approx(1)
    assert np.isfinite(result.metrics["loss"])
    assert [record.message for record in caplog.records] == [
        "1 of the tokens are over 20 nats less likely than under the reference; their KL is bounded"
    ]


def test_micro_batch_size_does_not_change_the_update(module):
    generator = torch.Generator().manual_seed(2)
    groups = [sample_group(module, generator, failed=(index,)) for index in range(4)]
    whole, small = copy.deepcopy(module), copy.deepcopy(module)
    first = update(whole, groups, config(epochs=2))
    second = update(small, groups, config(epochs=2, micro_batch_tokens=1))
    assert first.steps == second.steps == 4
    assert first.metrics == pytest.approx(second.metrics, rel=1e-3, abs=1e-5)
    for a, b in zip(whole.parameters(), small.parameters(), strict=True):
        # one AdamW step moves a weight by 5e-5; sums in another order differ far below that
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


def test_gradients_of_ranks_add_up_to_the_whole(module):
    generator = torch.Generator().manual_seed(3)
    groups = [sample_group(module, generator) for _ in range(2)]
    settings = config(prompts_per_update=2, micro_batch_tokens=60)

    def gradients(rank, ranks):
        copied = copy.deepcopy(module)
        policy, collected = PlainPolicy(copied, settings), []
        policy.step = lambda: collected.extend(p.grad.clone() for p in copied.parameters()) or 0.0
        result = policy_update(
            policy,
            groups,
            settings,
            grpo(settings, lambda batch: predict_batch(module, batch)),
            rank=rank,
            ranks=ranks,
        )
        return collected, result.metrics

    whole, metrics = gradients(0, 1)
    shares = [gradients(rank, 3) for rank in range(3)]
    for index, gradient in enumerate(whole):
        torch.testing.assert_close(sum(s[0][index] for s in shares), gradient, rtol=1e-3, atol=1e-6)
    merged = merge_metrics([s[1] for s in shares])
    assert merged == pytest.approx(metrics, rel=1e-3, abs=1e-5)


def test_a_batch_of_failures_changes_nothing(module):
    generator = torch.Generator().manual_seed(4)
    before = copy.deepcopy(module.state_dict())
    result = update(module, [sample_group(module, generator, failed=range(6))], config())
    assert (result.steps, result.counts.dropped_groups) == (0, 1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_update(module):
    generator = torch.Generator().manual_seed(5)
    group = sample_group(module, generator)
    with torch.no_grad():
        module.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="micro-batch 0"):
        update(module, [group], config())


def test_training_raises_the_reward(module):
    generator = torch.Generator().manual_seed(6)
    settings = config(learning_rate=3e-3, prompts_per_update=4, minibatch_prompts=4, group_size=8)
    reference = copy.deepcopy(module)
    policy = PlainPolicy(module, settings)
    means = []
    for _ in range(20):
        groups = [sample_group(module, generator, samples=8, frames=(2,)) for _ in range(4)]
        means.append(np.mean([score.total for group in groups for score in group.scores]))
        policy_update(
            policy,
            groups,
            settings,
            grpo(settings, lambda batch: predict_batch(reference, batch)),
        )
    assert means[0] == pytest.approx(0.5, abs=0.15)
    assert np.mean(means[-3:]) > means[0] + 0.25
