"""The diffusion world model's engine: its noise, its samples against plain passes, and what refreshes cut off."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_diffusion_rollout import CARD, FRAME, SCALING, engine, prompt
from tiny_denoiser import SIDE, VIEWS, tiny_network, tiny_sizes, write_tiny_denoiser

from roboalign_ray.config import DiffusionSamplingConfig, NoiseConfig, RefreshConfig, RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.engine import DiffusionEngine
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.noise import normals
from roboalign_ray.world_model.registry import open_world_model, read_weights

SEEDS = tuple(range(11))
PLAIN = RolloutConfig(refresh=RefreshConfig(policy="none"))


def sampled(config: DiffusionSamplingConfig, *, steps: int = 1, **changes) -> DiffusionEngine:
    sizes = tiny_sizes(**changes)
    folder = DenoiserFolder(sizes, NoiseConfig(steps=steps), CARD, SCALING)
    return DiffusionEngine(tiny_network(sizes), folder, PLAIN.model_copy(update={"diffusion": config}))


def test_noise_is_philox_by_seed_frame_and_step() -> None:
    """Key: the seed. Counter, lowest word first: numbers drawn, step, frame, purpose."""
    for purpose, word in (("clip", 0), ("actions", 1), ("history", 2)):
        bits = np.random.Philox(key=77, counter=[0, 3, 5, word])
        expected = np.random.Generator(bits).standard_normal((2, 4), dtype=np.float32)
        made = normals([1, 77], (2, 4), purpose=purpose, frame=5, step=3)
        np.testing.assert_array_equal(made[1], expected)
    drawn = [
        normals([seed], (50,), frame=frame, step=step, purpose=purpose)[0]
        for seed in (0, 1)
        for frame in (0, 1)
        for step in (0, 1)
        for purpose in ("clip", "actions", "history")
    ]
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.6


@pytest.mark.parametrize("clip_frames", [1, 3])
def test_one_step_is_the_networks_answer_to_pure_noise(clip_frames) -> None:
    model, start = engine(clip_frames=clip_frames), prompt(clip_frames)
    frames = model.frames(model.step(model.begin([start], [SEEDS]), start.actions[None]))
    first = torch.from_numpy(start.start).movedim(-1, -3).float() / 127.5 - 1  # [V, 3, H, W]
    reference = torch.from_numpy(start.context).movedim(-1, -3).float() / 127.5 - 1
    noise = torch.from_numpy(normals(SEEDS, (VIEWS, clip_frames, 3, SIDE, SIDE)))
    rows = len(SEEDS)
    actions = torch.zeros(rows, 2 + clip_frames, 2)
    actions[:, 2:] = (
        torch.from_numpy(start.actions) / 2
    )  # percentiles are -2 and 2; none lies beyond 1.5 times that
    assert np.abs(start.actions).max() < 3
    with torch.no_grad():
        clip = tiny_network(tiny_sizes(clip_frames=clip_frames))(
            noise,
            torch.ones(rows),
            first[None, :, None].expand(rows, VIEWS, 3, 3, SIDE, SIDE),
            reference.expand(rows, *reference.shape),
            actions,
            torch.zeros(rows),
        )
    expected = ((clip + 1) * 127.5).clamp(0, 255).movedim(-3, -1).movedim(1, 2).numpy()
    assert np.abs(frames - expected).max() < 0.51


def test_fresh_noise_of_a_step_follows_from_seed_frame_and_step() -> None:
    """Two steps by hand, from times 1 and 1/2: x_{1/2} = x_0 / 2 + sqrt(1/4 - d^2) e + d z, d = 0.7 / sqrt(2) / 2."""
    model = sampled(DiffusionSamplingConfig(steps=2, fresh_noise=0.7), past_actions=0)
    start, rows = prompt(1), len(SEEDS)
    made = model.rollout([start], [SEEDS])[0]
    assert made.payload.sampling.fresh_noise == 0.7
    frames = model.decode(made)[:, 0].astype(float)
    network, scale = tiny_network(tiny_sizes(past_actions=0)), NoiseConfig().residual_scale
    first = torch.from_numpy(start.start).movedim(-1, -3).float() / 127.5 - 1
    reference = torch.from_numpy(start.context).movedim(-1, -3).float() / 127.5 - 1
    newest = first[None, :, None].expand(rows, VIEWS, 1, 3, SIDE, SIDE)

    def clean(state: torch.Tensor, time: float) -> torch.Tensor:
        with torch.no_grad():
            clip = network(
                state,
                torch.full((rows,), time),
                newest.expand(rows, VIEWS, 3, 3, SIDE, SIDE),
                reference.expand(rows, *reference.shape),
                torch.from_numpy(start.actions[None] / 2).expand(rows, 1, 2),
                torch.zeros(rows),
            )
        return (clip - newest) / scale

    shape, d = (VIEWS, 1, 3, SIDE, SIDE), 0.7 / 2**0.5 / 2
    noise, fresh = (torch.from_numpy(normals(SEEDS, shape, step=step)) for step in (0, 1))
    middle = clean(noise, 1.0) / 2 + (0.25 - d**2) ** 0.5 * noise + d * fresh
    clip = newest + scale * clean(middle, 0.5)
    expected = ((clip + 1) * 127.5).clamp(0, 255).movedim(-3, -1)[:, :, 0].numpy()
    assert np.abs(frames - expected).max() < 0.51
    plain = sampled(DiffusionSamplingConfig(steps=2), past_actions=0)
    assert np.abs(plain.decode(plain.rollout([start], [SEEDS])[0])[:, 0] - frames).max() > 2


def test_more_steps_and_history_noise_change_the_frames() -> None:
    start, made = prompt(), []
    for config in (
        DiffusionSamplingConfig(steps=1),
        DiffusionSamplingConfig(steps=2),
        DiffusionSamplingConfig(steps=1, history_noise=0.1),
        DiffusionSamplingConfig(steps=1, action_noise=0.3),
        DiffusionSamplingConfig(steps=2, fresh_noise=0.7),
    ):
        made.append(sampled(config).rollout([start], [(1,)])[0])
        assert made[-1].payload.sampling.steps == config.steps
    assert len({rollout.payload.frames().tobytes() for rollout in made}) == len(made)
    for rollout in made:
        np.testing.assert_array_equal(rollout.payload.actions, start.actions)
    default = sampled(DiffusionSamplingConfig(), steps=2).rollout([start], [(1,)])[0]
    np.testing.assert_array_equal(default.payload.frames(), made[1].payload.frames())


def test_an_offset_of_the_actions_is_what_the_network_sees_of_action_noise() -> None:
    """One per sample, from its seed, in scaled units; the same for all frames."""
    start = prompt()
    offset = normals([5], (2,), purpose="actions")[0]
    noisy = sampled(DiffusionSamplingConfig(action_noise=0.3), past_actions=0)
    plain = sampled(DiffusionSamplingConfig(), past_actions=0)
    moved = replace(start, actions=(start.actions + 2 * 0.3 * offset).astype(np.float32))
    assert np.abs(moved.actions).max() < 3
    first, second = (m.decode(m.rollout([p], [(5,)])[0]) for m, p in ((noisy, start), (plain, moved)))
    assert np.abs(first.astype(int) - second).max() <= 1


def test_a_shared_history_is_held_once_for_all_candidates() -> None:
    """Bytes of frames in the state: the context and H + 1 known frames once per group, n frames per candidate."""
    model, candidates, history, frames = engine(), 16, 6, 2
    start, seeds = prompt(history + frames), tuple(range(16))
    actions, frame = start.actions[None], int(np.prod(FRAME))

    def held(state) -> int:
        return sum(value.nbytes for value in model.save(state).values() if value.shape[-1:] == (3,))

    shared = model.branch(model.step(model.begin([start], [(7,)]), actions[:, :history]), [0], [seeds])
    assert held(model.step(shared, actions[:, history:])) == frame * (1 + 1 + history + candidates * frames)
    separate = model.step(model.begin([start], [seeds]), actions)
    assert held(separate) == frame * (1 + 1 + candidates * (history + frames))


def test_action_noise_spreads_a_group() -> None:
    start, spread = prompt(), []
    for noise in (0.0, 0.1, 0.5):
        model = sampled(DiffusionSamplingConfig(action_noise=noise))
        frames = model.decode(model.rollout([start], [SEEDS])[0]).astype(float)
        spread.append(frames.std(axis=0).mean())
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("rows", [1, 3, 4, 8])
def test_rows_do_not_depend_on_the_batch(rows) -> None:
    """Bit for bit, whatever the number of rows and a row's place among them."""
    model, start = sampled(DiffusionSamplingConfig(rows_per_pass=rows), steps=2), prompt()
    actions = np.random.default_rng(0).normal(0, 1, (len(SEEDS), 6, 2))
    whole = model.frames(model.step(model.begin([start], [SEEDS]), actions))
    for count in (1, 2, 3, 5, 8):
        for first in (0, 3):
            chosen = slice(first, first + count)
            state = model.step(model.begin([start], [SEEDS[chosen]]), actions[chosen])
            np.testing.assert_array_equal(model.frames(state), whole[chosen])
    groups = model.begin([start] * 3, [(seed,) for seed in SEEDS[:3]])
    np.testing.assert_array_equal(model.frames(model.step(groups, actions[:3])), whole[:3])


@pytest.mark.parametrize(
    ("policy", "oldest", "references"),
    [
        ("none", [-3], [None]),
        ("swr", [-3, 1, 3], [None, 1, 3]),
        ("token_window", [-3, 1, 3], [None, None, None]),
        ("reference_recent", [-3, 0, 2], [None, None, None]),
    ],
)
def test_policies_say_what_a_segment_looks_back_to(policy, oldest, references) -> None:
    segments = engine(policy).rollout([prompt(past=2)], [(1, 2)])[0].payload.segments
    assert [segment.oldest for segment in segments] == oldest
    assert [segment.reference for segment in segments] == references


def test_frames_beyond_the_cut_have_no_say() -> None:
    """Two pasts that differ before what a refresh keeps go on in the same way; without a refresh they do not."""
    for policy, same in (("swr", True), ("none", False)):
        model, start = engine(policy), prompt()
        state = model.step(model.begin([start], [(1,)]), start.actions[None, :2])
        arrays = model.save(state)
        other = {**arrays, "known": 255 - arrays["known"]}
        grown = [model.step(model.load(a), start.actions[None, 2:]) for a in (arrays, other)]
        frames = [model.frames(state, 2) for state in grown]
        assert np.array_equal(*frames) is same


def test_clips_are_whole() -> None:
    model, start = engine("swr", clip_frames=2), prompt()
    assert model.card.clip_frames == 2
    begun = model.begin([start], [(1, 2)])
    with pytest.raises(UserError, match="no whole number of the world model's clips of 2"):
        model.step(begun, start.actions[None, :3])
    whole = model.rollout([start], [(1, 2)])[0]
    state = begun
    for first in (0, 2, 4):
        state = model.step(state, start.actions[None, first : first + 2])
    np.testing.assert_array_equal(model.decode(model.rollouts(state)[0]), model.decode(whole))
    assert len(whole.cost.seconds_per_frame) == whole.horizon == 6
    with pytest.raises(UserError, match="clips of 4"):
        engine("swr", clip_frames=4)


def test_sinks_are_refused_before_weights_are_read(tmp_path) -> None:
    folder = write_tiny_denoiser(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no refresh policy 'sinks'"):
        open_world_model(folder, RolloutConfig(refresh=RefreshConfig(policy="sinks")))


def test_weights_that_do_not_fit_leave_the_model_as_it_is(tmp_path) -> None:
    folder = write_tiny_denoiser(tmp_path / "model")
    model, weights, start = open_world_model(folder, PLAIN), dict(read_weights(folder)), prompt()
    before = model.decode(model.rollout([start], [(1,)])[0])
    name = next(iter(weights))
    for wrong in ({}, {**weights, name: weights[name][..., :1]}, {**weights, "another": weights[name]}):
        with pytest.raises(UserError):
            model.load_weights(wrong, 3)
    arrays = {key: value.numpy() for key, value in weights.items()}
    model.load_weights(arrays, 4)
    assert model.version == 4
    np.testing.assert_array_equal(model.decode(model.rollout([start], [(1,)])[0]), before)


def test_adapters_change_the_weights_that_the_engine_was_made_with() -> None:
    """Those that came last are forgotten, and what is not adapted stays."""
    model, start = engine("none"), prompt()
    base = tiny_network(tiny_sizes()).state_dict()
    name = "down.0.blocks.0.second.weight"
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(2, base[name][0].numel(), generator=generator)
    up = torch.randn(len(base[name]), 2, generator=generator)
    model.load_weights(tiny_network(tiny_sizes(), seed=1).state_dict(), 1)
    model.load_weights({f"{name}.down": down.numpy(), f"{name}.up": up.numpy()}, 2)
    adapted = model.decode(model.rollout([start], [(1,)])[0])
    model.load_weights({**base, name: base[name] + (up @ down).view(base[name].shape)}, 3)
    np.testing.assert_array_equal(model.decode(model.rollout([start], [(1,)])[0]), adapted)
    model.load_weights(base, 4)
    assert not np.array_equal(model.decode(model.rollout([start], [(1,)])[0]), adapted)


def test_new_weights_from_another_thread_wait_for_the_next_segment(tmp_path) -> None:
    model, start = engine("swr"), prompt()
    others = tiny_network(tiny_sizes(), seed=1).state_dict()
    state = model.step(model.begin([start], [(1,)]), start.actions[None, :1])
    thread = threading.Thread(target=model.load_weights, args=(others, 2))
    thread.start()
    thread.join()
    assert model.rollouts(model.step(state, start.actions[None, 1:]))[0].versions == (0, 2, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("known", np.zeros((1, 1, *FRAME), np.float32)),
        ("clip0", np.zeros((1, 1, *FRAME[:-1], 1), np.uint8)),
        ("actions", np.zeros((2, 1, 2))),
        ("header", np.frombuffer(b"{}", np.uint8)),
        ("seconds", np.zeros(5)),
    ],
)
def test_damaged_states_are_told(name, value) -> None:
    model, start = engine("swr"), prompt()
    state = model.step(model.begin([start], [(1, 2)]), start.actions[None, :3])
    with pytest.raises(UserError, match="is not a state"):
        model.load({**model.save(state), name: value})


def test_a_state_of_other_weights_is_told() -> None:
    model, start = engine("swr"), prompt()
    state = model.step(model.begin([start], [(1, 2)]), start.actions[None, :3])
    arrays = model.save(state)
    model.load_weights(tiny_network(tiny_sizes(), seed=1).state_dict(), 1)
    with pytest.raises(UserError, match="begun with weight version 0"):
        model.load(arrays)
