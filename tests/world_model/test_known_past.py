"""Prompts that bring more real frames than the start frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.token.transformer import segment_ids, token_logprobs


def with_past(prompt: Prompt, frames: np.ndarray, known: int) -> Prompt:
    """The prompt moved `known` frames on; `frames` are those after the start."""
    return Prompt(
        prompt.prompt_id,
        prompt.context,
        frames[known - 1],
        prompt.actions[known:],
        past=np.concatenate([prompt.start, frames[: known - 1]]),
        past_actions=prompt.actions[:known],
    )


@pytest.mark.parametrize("known", [1, 3])
def test_a_rollout_goes_on_from_its_own_frames_as_if_it_had_not_stopped(make_engine, make_prompt, known):
    engine, prompt = make_engine(temperature=0.0), make_prompt(2, 6)
    whole = engine.rollout([prompt], [(0,)])[0]
    rest = engine.rollout([with_past(prompt, engine.decode(whole)[0, :, 0], known)], [(0,)])[0]
    assert rest.payload.segments[0].given.shape[1] == known + 1
    np.testing.assert_array_equal(rest.payload.tokens, whole.payload.tokens[:, known:])
    np.testing.assert_allclose(rest.payload.logprobs, whole.payload.logprobs[:, known:], atol=1e-5)


@pytest.mark.parametrize("policy", ["none", "swr", "token_window", "reference_recent"])
def test_logprobs_are_exact_behind_a_past_and_batches_mix(make_engine, make_prompt, model, layout, policy):
    rng = np.random.default_rng(1)
    long, short = make_prompt(0, 9), make_prompt(1, 7)
    moved = with_past(long, rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8), 2)
    engine = make_engine(policy)
    groups = engine.rollout([moved, short], [(1, 2), (3, 4)])
    assert [len(group.payload.tokens[0]) for group in groups] == [7, 7]
    for segment in (segment for group in groups for segment in group.payload.segments):
        given, generated = segment.given.shape[1], segment.tokens.shape[1]
        with torch.no_grad():
            ids = torch.from_numpy(segment_ids(segment, layout))
            expected = token_logprobs(model, ids, layout, given + generated, given=given)
        np.testing.assert_allclose(
            segment.logprobs, expected.reshape(segment.logprobs.shape), atol=1e-5, rtol=1e-5
        )
    alone = engine.rollout([short], [(3, 4)])[0]
    np.testing.assert_array_equal(groups[1].payload.tokens, alone.payload.tokens)


def test_sinks_keep_no_more_frames_than_their_window_behind_a_past(make_engine, make_prompt, layout):
    rng = np.random.default_rng(1)
    moved = with_past(make_prompt(0, 9), rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8), 2)
    group = make_engine("sinks", window=3).rollout([moved], [(1, 2)])[0]
    assert group.payload.tokens.shape[1] == 7
    assert group.cost.peak_sequence == layout.peak_prompt(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"past_actions": None}, "past and past_actions go together"),
        (
            {"past": np.zeros((2, 4, 4, 3), np.uint8)},
            r"past is uint8 \(2, 1, 4, 4, 3\), not uint8 \(2, 1, 8, 8, 3\)",
        ),
        ({"past_actions": np.full((2, 3), np.nan)}, "not finite"),
        ({"past_actions": np.zeros((2, 2))}, r"past_actions have shape \(2, 2\), not \[m >= 1, 3\]"),
    ],
)
def test_a_past_that_does_not_fit_is_refused(make_engine, make_prompt, changes, message):
    prompt = make_prompt(0, 3)
    fields = {"past": np.zeros((2, 8, 8, 3), np.uint8), "past_actions": np.zeros((2, 3), np.int64)} | changes
    with pytest.raises(UserError, match=message):
        make_engine().rollout(
            [Prompt(prompt.prompt_id, prompt.context, prompt.start, prompt.actions, **fields)], [(1,)]
        )


def test_sinks_refuse_a_past_longer_than_their_window(make_engine, make_prompt):
    prompt = make_prompt(0, 8)
    moved = with_past(prompt, np.zeros((3, 8, 8, 3), np.uint8), 3)
    with pytest.raises(UserError, match="3 past frames do not fit"):
        make_engine("sinks", window=3).rollout([moved], [(1,)])
