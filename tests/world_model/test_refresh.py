"""What defines each context refresh policy, checked against a rollout restarted by hand or a plain forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.config import RefreshConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.refresh_starts import make_refresh
from roboalign_ray.world_model.token.transformer import slot_logits

pytestmark = pytest.mark.usefixtures("kernels")

PAPER = SequenceLayout(context_tokens=1280, dynamics_tokens=80, action_tokens=13, codes=4375, action_bins=256)


def test_swr_segment_equals_a_fresh_rollout_from_the_decoded_frame(make_engine, make_prompt):
    prompt, window = make_prompt(0, 6), 3
    engine = make_engine("swr", window, temperature=0.0)
    group = engine.rollout([prompt], [(1, 2)])[0]
    assert [s.tokens.shape[1] for s in group.payload.segments] == [3, 3]
    boundary = engine.decode(group)[:, window - 1, 0]
    for sample in range(2):
        frame = boundary[sample]
        fresh = engine.rollout([Prompt("fresh", frame, frame, prompt.actions[window:])], [(9,)])[0]
        np.testing.assert_array_equal(
            group.payload.segments[1].context[sample], fresh.payload.segments[0].context[0]
        )
        np.testing.assert_array_equal(
            group.payload.segments[1].given[sample], fresh.payload.segments[0].given[0]
        )
        np.testing.assert_array_equal(
            group.payload.segments[1].tokens[sample], fresh.payload.segments[0].tokens[0]
        )
        np.testing.assert_allclose(
            group.payload.segments[1].logprobs[sample], fresh.payload.segments[0].logprobs[0], atol=1e-5
        )


@pytest.mark.parametrize("horizon", [3, 7, 12])
def test_swr_peak_is_context_and_window_frames_whatever_the_horizon(
    make_engine, make_prompt, layout, horizon
):
    group = make_engine("swr", 3).rollout([make_prompt(0, horizon)], [(1, 2)])[0]
    assert group.cost.peak_sequence == layout.context_tokens + 3 * layout.frame_tokens
    plain = make_engine("none").rollout([make_prompt(0, horizon)], [(1, 2)])[0]
    assert plain.cost.peak_sequence == layout.context_tokens + horizon * layout.frame_tokens
    # A sample's own prompt and window, for two samples; the first segment's shared prefix needs less.
    per_token = 3 * 2 * 32 * 4
    assert group.cost.cache_bytes <= 2 * per_token * (1 + layout.peak_prompt(1) + 3 * layout.frame_tokens)


def test_paper_peak_reduction_in_closed_form():
    reduction = 1 - PAPER.peak_prompt(6) / PAPER.peak_prompt(30)
    assert PAPER.peak_prompt(30) == 4070
    assert round(100 * reduction, 2) == 54.84


def test_token_window_keeps_the_context_and_passes_the_last_tokens_on(make_engine, make_prompt, layout):
    engine = make_engine("token_window", 3)
    group = engine.rollout([make_prompt(0, 8)], [(1, 2, 3)])[0]
    for before, after in zip(group.payload.segments[:-1], group.payload.segments[1:], strict=True):
        np.testing.assert_array_equal(after.context, before.context)
        np.testing.assert_array_equal(after.given, before.tokens[:, -1:])
    # The context's keys survive every boundary: only the given frame and its action are fed again.
    assert engine.counters.prefix_tokens == layout.peak_prompt(1)
    assert engine.counters.row_tokens == 2 * 3 * layout.frame_tokens
    assert group.cost.peak_sequence == layout.peak_prompt(3)


def test_swr_computes_the_features_of_a_context_once(make_engine, make_prompt, block_tokenizer, monkeypatch):
    """A refresh decodes under the context that the one before it encoded under."""
    asked = []
    monkeypatch.setattr(
        type(block_tokenizer), "context_features", lambda _, codes: asked.append(codes.tolist()) or codes
    )
    group = make_engine("swr", 3).rollout([make_prompt(0, 12)], [(1, 2)])[0]
    first, *later = [segment.context.tolist() for segment in group.payload.segments]
    assert asked == [first, first * 2, *later]  # the first context is its group's, then its samples'


@pytest.mark.parametrize("recent", [1, 2, 5])
def test_reference_recent_reencodes_the_last_frames(
    make_engine, make_prompt, block_tokenizer, layout, recent
):
    engine, window = make_engine("reference_recent", 3, recent=recent), 3
    prompt = make_prompt(0, 9)
    group = engine.rollout([prompt], [(1, 2)])[0]
    frames = np.concatenate(
        [np.broadcast_to(prompt.start, (2, 1, 8, 8, 3)), engine.decode(group)[:, :, 0]], axis=1
    )
    context = np.broadcast_to(group.payload.segments[0].context, (2, layout.context_tokens)).astype(np.int64)
    for index, segment in enumerate(group.payload.segments[1:], start=1):
        last = index * window
        kept = frames[:, max(0, last - recent + 1) : last + 1]
        pixels = torch.from_numpy(np.ascontiguousarray(kept)).movedim(-1, -3).float() / 255
        expected = block_tokenizer.encode_dynamics(pixels, torch.from_numpy(context))
        np.testing.assert_array_equal(segment.given, expected)
        np.testing.assert_array_equal(segment.context, group.payload.segments[0].context)
        assert len(segment.actions) == kept.shape[1] - 1 + segment.tokens.shape[1]
        np.testing.assert_array_equal(segment.actions, prompt.actions[last - kept.shape[1] + 1 : last + 3])
    kept = min(recent, 2 * window + 1)
    assert group.cost.peak_sequence == layout.peak_prompt(kept + window - 1)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("sinks", [0, 4, 16])
def test_sinks_cache_is_bounded(make_engine, make_prompt, layout, window, sinks):
    groups = [
        make_engine("sinks", window, sink_tokens=sinks).rollout([make_prompt(0, horizon)], [(1, 2)])[0]
        for horizon in (window + 4, window + 12)
    ]
    assert groups[0].cost.cache_bytes == groups[1].cost.cache_bytes
    bound = max(layout.peak_prompt(window), sinks + window * layout.frame_tokens)
    assert all(group.cost.peak_sequence == bound for group in groups)
    assert not groups[0].payload.segments[0].exact


@torch.no_grad()
def test_sinks_attend_to_first_tokens_and_last_frames_at_places_within_the_cache(
    make_model, make_engine, make_prompt, layout
):
    """One layer's keys do not depend on what was evicted, so a plain pass over the kept tokens must agree."""
    model, window, sinks, horizon = make_model(layers=1), 2, 4, 7
    prompt = make_prompt(0, horizon)
    group = make_engine("sinks", window, of=model, sink_tokens=sinks).rollout([prompt], [(1, 2)])[0]
    segment = group.payload.segments[0]
    context = np.repeat(segment.context, 2, axis=0) + layout.context_range[0]
    frames = np.concatenate([np.repeat(segment.given, 2, axis=0), segment.tokens], axis=1)
    actions = np.broadcast_to(prompt.actions + layout.action_range[0], (2, *prompt.actions.shape))
    for frame in range(window + 1, horizon + 1):
        kept = [context[:, :sinks]]
        for earlier in range(frame - window, frame):
            kept += [frames[:, earlier], actions[:, earlier]]
        ids = torch.from_numpy(np.concatenate([*kept, frames[:, frame]], axis=1).astype(np.int64))
        logits = model(ids).logits[:, -layout.dynamics_tokens - 1 : -1, : layout.codes]
        expected = logits.log_softmax(-1).gather(-1, ids[:, -layout.dynamics_tokens :, None])[..., 0]
        np.testing.assert_allclose(segment.logprobs[:, frame - 1], expected, atol=2e-5)


def test_sinks_within_the_window_are_plain_autoregression(make_engine, make_prompt):
    prompt = make_prompt(0, 3)
    plain = make_engine("none").rollout([prompt], [(1, 2)])[0]
    sinks = make_engine("sinks", 3).rollout([prompt], [(1, 2)])[0]
    assert sinks.payload.segments[0].exact
    np.testing.assert_array_equal(plain.payload.logprobs, sinks.payload.logprobs)


def test_more_sinks_than_context_are_refused(layout):
    with pytest.raises(UserError, match="sink_tokens 17"):
        make_refresh(RefreshConfig(policy="sinks", sink_tokens=17), layout)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["none", "swr", "token_window", "sinks", "reference_recent"]),
    st.integers(1, 20),
    st.integers(1, 100),
)
def test_plan_covers_the_horizon(policy, window, horizon):
    plan = make_refresh(RefreshConfig(policy=policy, window=window), PAPER).plan(horizon)
    assert sum(plan) == horizon
    if policy in ("none", "sinks"):
        assert plan == (horizon,)
    else:
        assert len(plan) == -(-horizon // window)
        assert all(frames == window for frames in plan[:-1])


@torch.no_grad()
def test_slot_logits_are_the_full_models_logits(model, layout, make_engine, make_prompt):
    from roboalign_ray.world_model.token.transformer import segment_ids

    segment = make_engine().rollout([make_prompt(0, 4)], [(1, 2)])[0].payload.segments[0]
    ids = torch.from_numpy(segment_ids(segment, layout))
    full = model(ids).logits[:, layout.predicted(5) - 1, : layout.codes]
    torch.testing.assert_close(slot_logits(model, ids, layout, 5), full)
