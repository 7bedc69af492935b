"""The engine against the training model: log-probabilities, greedy tokens, independence of the batch, shared prefix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.token.transformer import segment_ids, token_logprobs

pytestmark = pytest.mark.usefixtures("kernels")

POLICIES = ("none", "swr", "token_window", "sinks", "reference_recent")


def assert_exact(segment, model, layout, tolerance=1e-5):
    """Recorded log-probabilities equal a plain forward pass over the segment as a training sequence."""
    given, frames = segment.given.shape[1], segment.given.shape[1] + segment.tokens.shape[1]
    with torch.no_grad():
        ids = torch.from_numpy(segment_ids(segment, layout))
        expected = token_logprobs(model, ids, layout, frames, given=given).reshape(segment.logprobs.shape)
    np.testing.assert_allclose(segment.logprobs, expected.numpy(), atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logprobs_equal_a_full_forward_pass(make_model, make_engine, make_prompt, layout, policy, kv_heads):
    model = make_model(kv_heads=kv_heads)
    engine = make_engine(policy, of=model)
    groups = engine.rollout([make_prompt(0, 7), make_prompt(1, 7)], [(1, 2, 3), (4, 5, 6)])
    for group in groups:
        assert group.payload.tokens.shape == (3, 7, layout.dynamics_tokens)
        for segment in group.payload.segments:
            assert segment.exact == (policy != "sinks")
            if segment.exact:
                assert_exact(segment, model, layout)


def test_engine_says_what_runs_it(make_engine, kernels):
    assert make_engine().native == (kernels == "native")
    assert not make_engine(precision="bfloat16").native


def test_sampled_distribution_is_not_trivial(make_engine, make_prompt):
    group = make_engine().rollout([make_prompt(0, 5)], [tuple(range(16))])[0]
    assert len(np.unique(group.payload.tokens)) > 10
    assert -3.5 < group.payload.logprobs.mean() < -0.3  # uniform would be -3.6, certain 0
    assert len({row.tobytes() for row in group.payload.tokens}) == 16


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_tokens_whatever_else_is_in_the_batch(make_engine, make_prompt, policy):
    engine = make_engine(policy)
    prompts = [make_prompt(seed, 8) for seed in range(3)]
    alone = engine.rollout([prompts[1]], [(77,)])[0]
    for seeds in ([(1, 2, 77)] * 3, [tuple(range(70, 81))] * 3, [(5,), (77, 6), (8, 9, 10)]):
        group = engine.rollout(prompts, seeds)[1]
        place = group.seeds.index(77)
        np.testing.assert_array_equal(group.payload.tokens[place], alone.payload.tokens[0])
        np.testing.assert_array_equal(group.payload.logprobs[place], alone.payload.logprobs[0])


def test_a_longer_horizon_continues_the_same_rollout(make_engine, make_prompt):
    prompt = make_prompt(3, 9)
    shorter = Prompt(prompt.prompt_id, prompt.context, prompt.start, prompt.actions[:4])
    short, long = make_engine("swr").rollout([shorter, prompt], [(5, 6), (5, 6)])
    np.testing.assert_array_equal(long.payload.tokens[:, :4], short.payload.tokens)


def greedy_by_hugging_face(model, ids, layout, actions, frames):
    """Token by token with a Hugging Face cache, the most likely dynamics code each time."""
    cache, chunk, tokens = DynamicCache(), torch.from_numpy(ids), []
    for frame in range(frames):
        for _ in range(layout.dynamics_tokens):
            logits = model(chunk, past_key_values=cache, use_cache=True).logits[:, -1, : layout.codes]
            chunk = logits.argmax(-1, keepdim=True)
            tokens.append(chunk)
        if frame + 1 < frames:
            action = torch.from_numpy(actions[frame + 1 : frame + 2] + layout.action_range[0])
            chunk = torch.cat([chunk, action], dim=1)
    return torch.cat(tokens, dim=1).reshape(len(ids), frames, -1).numpy()


@torch.no_grad()
def test_greedy_equals_hugging_face_restricted_to_the_slot(model, make_engine, make_prompt, layout):
    prompt = make_prompt(4, 5)
    group = make_engine(temperature=0.0).rollout([prompt], [(0, 1)])[0]
    segment = group.payload.segments[0]
    ids = layout.assemble(segment.context, segment.given, prompt.actions[None, :1])
    expected = greedy_by_hugging_face(model, ids, layout, prompt.actions, 5)
    np.testing.assert_array_equal(group.payload.tokens, np.repeat(expected, 2, axis=0))


@pytest.mark.parametrize("samples", [1, 5, 8])
def test_prefix_is_computed_once_per_group(make_engine, make_prompt, layout, samples):
    engine = make_engine()
    engine.rollout([make_prompt(0, 4), make_prompt(1, 4)], [tuple(range(samples))] * 2)
    assert engine.counters.prefix_tokens == 2 * layout.peak_prompt(1)
    assert engine.counters.row_tokens == 0
    assert engine.counters.decode_steps == 4 * (layout.dynamics_tokens - 1)
    assert engine.counters.chunk_steps == 3


def test_cache_bytes_grow_with_samples_only_behind_the_prefix(make_engine, make_prompt, layout):
    per_token = 3 * 2 * 32 * 4  # layers, keys and values, width, float32
    for samples in (1, 8):
        group = make_engine().rollout([make_prompt(0, 4)], [tuple(range(samples))])[0]
        # One slot each is not a token: see cache.py.
        expected = 1 + layout.peak_prompt(1) + samples * (1 + 4 * layout.frame_tokens)
        assert group.cost.cache_bytes == per_token * expected


def test_new_weights_take_effect_at_the_next_segment(model, make_model, make_engine, make_prompt, layout):
    other = make_model(seed=9)
    engine = make_engine("token_window")
    restart = engine._parts.refresh.restart

    def swap_at_first_boundary(*arguments):
        if engine.version == 0:
            engine.load_weights(other.state_dict(), 7)
            assert engine.version == 0  # a rollout is under way: not yet
        return restart(*arguments)

    engine._parts.refresh.restart = swap_at_first_boundary
    group = engine.rollout([make_prompt(0, 8)], [(1, 2)])[0]
    assert group.versions == (0, 7, 7)
    assert_exact(group.payload.segments[0], model, layout)
    assert_exact(group.payload.segments[1], other, layout)
    assert_exact(group.payload.segments[2], other, layout)
    # The context's keys are recomputed once, for the new weights, and then kept again.
    assert engine.counters.prefix_tokens == layout.peak_prompt(1) + layout.context_tokens


def test_idle_engine_takes_new_weights_at_once(make_model, make_engine, make_prompt, layout):
    engine, other = make_engine(), make_model(seed=9)
    engine.load_weights({name: weight.numpy() for name, weight in other.state_dict().items()}, 3)
    assert engine.version == 3
    assert_exact(engine.rollout([make_prompt(0, 2)], [(1,)])[0].payload.segments[0], other, layout)


def test_engine_keeps_its_copy_while_the_model_trains_on(make_model, make_engine, make_prompt):
    model = make_model()
    engine = make_engine(of=model)
    before = engine.rollout([make_prompt(0, 2)], [(1,)])[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    after = engine.rollout([make_prompt(0, 2)], [(1,)])[0]
    np.testing.assert_array_equal(before.payload.logprobs, after.payload.logprobs)


def test_bfloat16_stays_close(model, make_engine, make_prompt, layout):
    group = make_engine("swr", precision="bfloat16").rollout([make_prompt(0, 5)], [(1, 2, 3)])[0]
    for segment in group.payload.segments:
        assert_exact(segment, model, layout, tolerance=0.5)


@pytest.mark.parametrize("policy", POLICIES)
def test_decode_gives_every_frame_under_its_segments_context(
    make_engine, make_prompt, block_tokenizer, policy
):
    engine = make_engine(policy)
    group = engine.rollout([make_prompt(0, 7)], [(1, 2)])[0]
    frames = engine.decode(group)
    assert frames.shape == (2, 7, 1, 8, 8, 3)
    assert frames.dtype == np.uint8
    last = group.payload.segments[-1]
    context = torch.from_numpy(np.broadcast_to(last.context, (2, last.context.shape[1])).astype(np.int64))
    pixels = block_tokenizer.decode_dynamics(torch.from_numpy(last.tokens.astype(np.int64)), context)
    np.testing.assert_array_equal(frames[:, -1, 0], (pixels[:, -1] * 255).round().byte().permute(0, 2, 3, 1))


def test_bad_input_is_told(make_engine, make_prompt, make_model, layout):
    engine, good = make_engine(), make_prompt(0, 3)
    with pytest.raises(UserError, match="seeds for 1 prompts"):
        engine.rollout([good], [])
    with pytest.raises(UserError, match="has no seeds"):
        engine.rollout([good], [()])
    with pytest.raises(UserError, match="outside"):
        engine.rollout([good], [(-1,)])
    with pytest.raises(UserError, match="not finite"):
        engine.rollout([Prompt("p", good.context, good.start, good.actions * np.nan)], [(1,)])
    with pytest.raises(UserError, match="not \\[B, h >= 1, 3\\]"):
        engine.rollout([Prompt("p", good.context, good.start, good.actions[:, :2])], [(1,)])
    with pytest.raises(UserError, match="not uint8"):
        engine.rollout([Prompt("p", good.context / 255, good.start, good.actions)], [(1,)])
    with pytest.raises(UserError, match="lm_head"):
        engine.load_weights({n: w for n, w in make_model().state_dict().items() if "lm_head" not in n}, 1)
    with pytest.raises(UserError, match="has shape"):
        engine.load_weights(make_model(ffn=64).state_dict(), 1)
    assert engine.version == 0


@pytest.mark.parametrize("policy", ["swr", "token_window"])
def test_a_rollout_that_took_new_weights_on_its_way_can_be_made_again(
    kernels, make_model, make_engine, make_prompt, policy
):
    states = {0: make_model().state_dict(), 7: make_model(seed=9).state_dict()}
    engine, prompts, seeds = make_engine(policy), [make_prompt(n, 8) for n in range(3)], [(1, 2)] * 3
    restart = engine._parts.refresh.restart

    def swap_at_first_boundary(*arguments):
        if engine.version == 0:
            engine.load_weights(states[7], 7)
        return restart(*arguments)

    engine._parts.refresh.restart = swap_at_first_boundary
    first = engine.rollout(prompts, seeds)
    other = make_engine(policy, of=make_model(seed=3))
    again = other.rollout_again(prompts, seeds, [(v, states[v]) for v in first[0].versions])
    for before, after in zip(first, again, strict=True):
        assert before.versions == after.versions == (0, 7, 7)
        np.testing.assert_array_equal(before.payload.tokens, after.payload.tokens)
        np.testing.assert_array_equal(before.payload.logprobs, after.payload.logprobs)
    assert other.version == 0
    with pytest.raises(UserError, match="2 weight versions for 3 segments"):
        other.rollout_again(prompts, seeds, [(0, states[0])] * 2)
