"""What a diffusion rollout records: packed frames, segments, and the clips that a denoiser is trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_denoiser import SIDE, VIEWS, tiny_network, tiny_sizes, unit_card

from roboalign_ray.config import NoiseConfig, RefreshConfig, RolloutConfig
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.engine import DiffusionEngine
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.noise import normals
from roboalign_ray.world_model.diffusion.packed_frames import PackedFrames
from roboalign_ray.world_model.diffusion.rollout import DiffusionPayload, DiffusionSegment, Sampling
from roboalign_ray.world_model.diffusion.training_clips import training_clips
from roboalign_ray.world_model.protocol import Prompt

SIZES, CARD = tiny_sizes(), unit_card(2)
FRAME = (VIEWS, SIDE, SIDE, 3)
SCALING = ActionScaling.from_card(CARD)


def engine(policy: str = "none", **changes) -> DiffusionEngine:
    sizes = tiny_sizes(**changes)
    folder = DenoiserFolder(sizes, NoiseConfig(steps=1), CARD, SCALING)
    refresh = RefreshConfig(policy=policy, window=2, recent=2)
    return DiffusionEngine(tiny_network(sizes), folder, RolloutConfig(refresh=refresh))


def prompt(horizon: int = 6, past: int = 0) -> Prompt:
    generator = np.random.default_rng(1)
    frames = generator.integers(0, 256, (2 + past, *FRAME), dtype=np.uint8)
    actions = generator.normal(0, 1, (horizon + past, 2)).astype(np.float32)
    earlier = {"past": frames[2:], "past_actions": actions[:past]} if past else {}
    return Prompt("window", frames[0], frames[1], actions[past:], "push", **earlier)


def payload_of(policy: str = "swr", **changes) -> DiffusionPayload:
    made = engine(policy, **changes).rollout([prompt()], [(1, 2, 3)])[0].payload
    assert isinstance(made, DiffusionPayload)
    return made


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(1, 5)),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0, 3, 256]),
    known=st.booleans(),
)
def test_packed_frames_come_back(shape, seed, spread, known) -> None:
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, max(1, spread), (*shape, 4, 3)).astype(np.uint8)
    before = generator.integers(0, 256, frames.shape[2:]).astype(np.uint8) if known else None
    packed = PackedFrames.of(frames, before)
    np.testing.assert_array_equal(packed.frames(before), frames)


def test_what_stands_still_takes_no_room() -> None:
    still = np.broadcast_to(np.random.default_rng(0).integers(0, 256, FRAME, dtype=np.uint8), (4, 9, *FRAME))
    packed = PackedFrames.of(still, still[0, 0])
    assert len(packed.data) < still.nbytes / 100


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_frames_are_told(data) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 1, 4, 4, 3), dtype=np.uint8)
    packed = PackedFrames.of(frames)
    place = data.draw(st.integers(0, len(packed.data) - 1))
    damage = data.draw(st.sampled_from(["bit", "cut", "more"]))
    if damage == "bit":
        bytes_ = packed.data.copy()
        bytes_[place] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        bytes_ = packed.data[:place]
    else:
        bytes_ = np.append(packed.data, np.uint8(0))
    with pytest.raises(ValueError, match=r"damaged|cannot hold"):
        PackedFrames(packed.shape, bytes_).frames()


@pytest.mark.parametrize("frames", [2, 4, 10**12])
def test_another_number_of_frames_is_told_before_it_is_unpacked(frames) -> None:
    packed = PackedFrames.of(np.zeros((1, 3, 1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"damaged|cannot hold"):
        PackedFrames((1, frames, *packed.shape[2:]), packed.data).frames()


def test_payloads_become_arrays_and_back() -> None:
    payload = payload_of()
    header, arrays = payload.to_arrays()
    again = DiffusionPayload.from_arrays(header, arrays)
    assert (again.segments, again.sampling) == (payload.segments, payload.sampling)
    np.testing.assert_array_equal(again.frames(), payload.frames())
    np.testing.assert_array_equal(again.actions, payload.actions)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("segments", ()),
        ("segments", (DiffusionSegment(3, 0, -1),)),
        ("segments", (DiffusionSegment(6, 0, -5),)),
        ("segments", (DiffusionSegment(6, 0, 0),)),
        ("segments", (DiffusionSegment(2, 0, -1), DiffusionSegment(4, 0, 1, 2))),
        ("actions", np.zeros((5, 2), np.float32)),
        ("actions", np.zeros((2, 6, 2), np.float32)),
        ("actions", np.zeros((6, 2))),
        ("known", PackedFrames.of(np.zeros((1, 1, *FRAME), np.uint8))),
        ("known", PackedFrames.of(np.zeros((1, 2, 1, SIDE, SIDE, 3), np.uint8))),
    ],
)
def test_parts_that_do_not_fit_are_told(part, value) -> None:
    with pytest.raises(ValueError):
        replace(payload_of("none"), **{part: value})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_headers_are_told(data) -> None:
    header, arrays = HEADER_AND_ARRAYS
    name = data.draw(st.sampled_from(sorted(header)))
    wrong = data.draw(st.sampled_from([None, [], {}, "text", [None] * 6, [-1] * 6, [10**9] * 6, [{}]]))
    with pytest.raises((ValueError, LookupError, TypeError)):
        DiffusionPayload.from_arrays({**header, name: wrong}, arrays)


HEADER_AND_ARRAYS = payload_of().to_arrays()


@pytest.mark.parametrize("policy", ["none", "swr", "token_window", "reference_recent"])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("branch", [0, 3, 4])
def test_a_rollout_can_be_made_again_from_what_it_recorded(policy, past, branch) -> None:
    """The network, asked for each clip with the recorded inputs and the seeds' noise, gives the recorded clip."""
    model, start = engine(policy), prompt(past=past)
    state = model.begin([start], [(1, 2)])
    if branch:
        state = model.branch(model.step(state, start.actions[None, :branch]), [1], [(7, 8, 9)])
    rollout = model.rollouts(model.step(state, start.actions[None, branch:]))[0]
    clips = list(training_clips(rollout.payload, SIZES, SCALING))
    assert [clip.first for clip in clips] == list(range(6 - branch))
    network = tiny_network(SIZES)
    for clip in clips:
        noise = normals(rollout.seeds, (VIEWS, 1, 3, SIDE, SIDE), frame=clip.first)
        seen = clip.inputs
        with torch.no_grad():
            made = network(
                torch.from_numpy(noise),
                torch.ones(len(noise)),
                seen.history,
                seen.reference,
                seen.actions,
                seen.level,
            )
        assert (made - clip.clean).abs().max() <= 1.01 / 255


def test_another_denoisers_payload_is_told() -> None:
    for changes in ({"height": 32}, {"action_dims": 3}, {"clip_frames": 4}):
        with pytest.raises(ValueError):
            list(training_clips(payload_of("none"), tiny_sizes(**changes), SCALING))


def test_exploration_is_recorded() -> None:
    payload = payload_of("none")
    told = replace(payload, sampling=Sampling(3, 0.25, 0.125, 0.5))
    assert DiffusionPayload.from_arrays(*told.to_arrays()).sampling == Sampling(3, 0.25, 0.125, 0.5)
