"""Training sequences against the layout's own slots, and micro-batches against the undivided list."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.alignment.advantages import (
    batch_counts,
    configured_advantages,
    frame_advantages,
    group_advantages,
)
from roboalign_ray.alignment.objectives.token_batch import (
    check_trainable,
    micro_batches,
    token_count,
    training_sequences,
)
from roboalign_ray.alignment.records.scored import ScoredGroup, reward_scalars
from roboalign_ray.config import AlignmentConfig, RefreshConfig, RolloutConfig, SamplingConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment
from roboalign_ray.world_model.token.transformer import segment_ids

LAYOUT = SequenceLayout(context_tokens=5, dynamics_tokens=3, action_tokens=2, codes=11, action_bins=7)


def segment(generator, samples, frames, *, given=1, shared=False, version=0, exact=True):
    lead = 1 if shared else samples
    return TokenSegment(
        context=generator.integers(0, 11, (lead, 5), dtype=np.int32),
        given=generator.integers(0, 11, (lead, given, 3), dtype=np.int32),
        actions=generator.integers(0, 7, (given - 1 + frames, 2), dtype=np.int32),
        tokens=generator.integers(0, 11, (samples, frames, 3), dtype=np.int32),
        logprobs=-generator.uniform(0, 3, (samples, frames, 3)).astype(np.float32),
        version=version,
        exact=exact,
    )


def group(seed=0, rewards=(0.1, None, 0.7, 0.4), frames=(4, 4, 2), prompt="p"):
    generator = np.random.default_rng(seed)
    segments = [
        segment(generator, len(rewards), n, shared=index == 0, version=index)
        for index, n in enumerate(frames)
    ]
    rollout = Rollout(
        prompt_id=prompt,
        instruction="",
        seeds=tuple(range(len(rewards))),
        payload=TokenPayload(tuple(segments)),
        cost=RolloutCost(np.full(sum(frames), 0.5)),
    )
    scores = tuple(Failed("x") if r is None else Scored(r, {"ssim": r, "lpips": 1.0}) for r in rewards)
    return ScoredGroup(rollout, scores)


def prepared(groups, config=AlignmentConfig()):
    """Sequences and counts of groups."""
    advantages = [configured_advantages(group.scores, config) for group in groups]
    return training_sequences(groups, advantages, LAYOUT), batch_counts(advantages)


def test_a_segment_is_laid_out_slot_by_slot():
    part = segment(np.random.default_rng(1), 4, 3, given=2, shared=True)
    ids = segment_ids(part, LAYOUT)
    assert ids.shape == (4, 5 + 5 * 3 + 4 * 2)
    for sample in range(4):
        row = list(ids[sample])
        assert row[:5] == [code + 11 for code in part.context[0]]
        frames = [*part.given[0], *part.tokens[sample]]
        for index, frame in enumerate(frames):
            slot = row[5 + index * 5 : 5 + (index + 1) * 5]
            assert slot[:3] == list(frame)
            if index < len(frames) - 1:
                assert slot[3:] == [bin_ + 22 for bin_ in part.actions[index]]


def test_trained_positions_are_the_generated_tokens():
    scored = group()
    sequences, _ = prepared([scored])
    survivors = [0, 2, 3]
    expected = [(part, sample) for part in scored.rollout.payload.segments for sample in survivors]
    assert len(sequences) == len(expected)
    for sequence, (part, sample) in zip(sequences, expected, strict=True):
        positions = LAYOUT.predicted(sequence.frames)[-sequence.tokens :]
        assert sequence.ids[positions].tolist() == part.tokens[sample].reshape(-1).tolist()
        np.testing.assert_array_equal(sequence.behaviour, part.logprobs[sample].reshape(-1))
        assert sequence.version == part.version


def test_counts_and_failed_samples_leave_no_sequence():
    groups = [group(1), group(2, (None, None, None, 1.0)), group(3, (0.5, 0.5, 0.5, 0.5))]
    sequences, counts = prepared(groups)
    assert (counts.groups, counts.dropped_groups, counts.flat_groups) == (3, 1, 1)
    assert (counts.samples, counts.failed_samples) == (12, 5)
    assert len(sequences) == 3 * (3 + 0 + 4)
    assert token_count(sequences) == 10 * 3 * (3 + 0 + 4)
    assert not any(sequence.advantages.any() for sequence in sequences[9:])


def test_a_batch_without_any_valid_group_is_empty():
    sequences, counts = prepared([group(1, (None, None))])
    assert sequences == []
    assert counts.dropped_groups == 1
    assert micro_batches(sequences, 100) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 4), st.integers(1, 4))
def test_micro_batches_hold_every_sequence_once_on_equally_busy_ranks(budget, ranks, groups):
    sequences, _ = prepared([group(seed) for seed in range(groups)])
    shares = [micro_batches(sequences, budget, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    rows = []
    for batch in (batch for share in shares for batch in share):
        assert len(batch.ids) == 1 or batch.ids.size <= budget
        assert batch.mask.shape == batch.behaviour.shape == (len(batch.ids), batch.generated * 3)
        if batch.mask.any():
            rows += [
                (*ids, *behaviour, *a)
                for ids, behaviour, a in zip(batch.ids, batch.behaviour, batch.advantages, strict=True)
            ]
    assert sum(batch.mask.sum() for share in shares for batch in share) == token_count(sequences)
    assert sorted(rows) == sorted((*s.ids, *s.behaviour, *s.advantages) for s in sequences)


def test_a_rank_stacks_its_own_share_alone():
    sequences, _ = prepared([group(seed) for seed in range(12)])

    def bytes_taken(ranks):
        tracemalloc.start()
        batches = micro_batches(sequences, 100, rank=0, ranks=ranks)
        taken, _ = tracemalloc.get_traced_memory()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert batches
        return taken, peak

    whole, share = bytes_taken(1), bytes_taken(6)
    assert share[0] < 0.3 * whole[0]
    assert share[1] < 0.6 * whole[1]


def test_credit_by_clip_is_the_same_for_all_tokens_and_by_frame_for_those_of_a_frame():
    scored = group()
    frames = scored.rollout.payload.tokens.shape[1]
    rng = np.random.default_rng(5)
    scores = tuple(
        Scored(s.total, per_frame=rng.normal(size=frames)) if isinstance(s, Scored) else s
        for s in scored.scores
    )
    by_frame = ScoredGroup(scored.rollout, scores)
    survivors = [i for i, s in enumerate(scores) if isinstance(s, Scored)]
    for credit, expected in (
        ("clip", np.repeat(group_advantages(scores).values[:, None], frames, axis=1)),
        ("frame", frame_advantages(scores, 0.5).values),
    ):
        sequences, _ = prepared([by_frame], AlignmentConfig(credit=credit, discount=0.5))
        for place, sample in enumerate(survivors):
            mine = np.concatenate([s.advantages for s in sequences[place :: len(survivors)]])
            np.testing.assert_allclose(mine, expected[sample].repeat(3), rtol=1e-6)


def test_inexact_segments_are_refused():
    scored = group()
    part = segment(np.random.default_rng(0), 4, 2, exact=False)
    rollout = Rollout("p", "", (0, 1, 2, 3), TokenPayload((part,)), RolloutCost(np.zeros(2)))
    with pytest.raises(UserError, match="sinks"):
        prepared([ScoredGroup(rollout, scored.scores)])


@pytest.mark.parametrize(
    "rollout",
    [
        RolloutConfig(refresh=RefreshConfig(policy="sinks")),
        RolloutConfig(sampling=SamplingConfig(temperature=0.7)),
        RolloutConfig(sampling=SamplingConfig(top_k=100)),
    ],
)
def test_settings_that_cannot_be_trained_on_are_refused(rollout):
    with pytest.raises(UserError, match="rollout"):
        check_trainable(rollout)


@pytest.mark.parametrize("policy", ["none", "swr", "token_window", "reference_recent"])
def test_settings_that_can(policy):
    check_trainable(RolloutConfig(refresh=RefreshConfig(policy=policy)))


def test_reward_scalars_leave_failures_out():
    records = [group(0, (1.0, None, 3.0)).record(), group(0, (None, None)).record()]
    scalars = reward_scalars(records)
    assert scalars["samples"] == 5
    assert scalars["failed_samples"] == 3
    assert scalars["reward_mean"] == 2.0
    assert scalars["reward_std"] == 1.0
    assert scalars["reward_ssim"] == 2.0
    assert "reward_mean" not in reward_scalars(records[1:])


def test_journal_line_holds_seeds_versions_and_failures():
    line = group(0, (1.0, None)).record().as_json()
    assert line["seeds"] == [0, 1]
    assert line["versions"] == [0, 1, 2]
    assert line["scores"] == [
        {"total": 1.0, "ssim": 1.0, "lpips": 1.0, "scorer_version": 0},
        {"failed": "x", "kind": "error"},
    ]
