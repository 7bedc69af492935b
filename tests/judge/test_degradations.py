"""Degradations on a made clip, where what each must do to the pixels is known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_clips import BLUE, FRAMES, GREY, RED, made_clip

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import DEGRADATIONS, TABLE, Degraded, degrade
from roboalign_ray.judge.rubric import maxima

CLIP, MATERIAL = made_clip()


def spoiled(name: str, strength: float = 1.0, seed: int = 0, scores: np.ndarray | None = None) -> Degraded:
    points = maxima() if scores is None else scores
    return degrade(name, CLIP, "push it", points, strength, np.random.default_rng(seed), MATERIAL)


def count(frames: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (frames == np.array(colour)).all(axis=-1).sum(axis=(1, 2))


def test_there_are_enough_and_each_costs_something() -> None:
    assert len(DEGRADATIONS) == len(TABLE) >= 14
    for degradation in TABLE:
        assert len(degradation.lost) == 6
        assert all(0 <= share <= 1 for share in degradation.lost)
        assert np.dot(degradation.lost, maxima()) >= 1, degradation.name


@pytest.mark.parametrize("name", DEGRADATIONS)
@settings(deadline=None, max_examples=15)
@given(
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    shares=st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_more_strength_never_scores_more(name: str, low: float, high: float, shares: list[float]) -> None:
    low, high = sorted((low, high))
    base = (np.array(shares) * maxima()).astype(np.float32)
    weak, strong = (DEGRADATIONS[name].scores(base, strength) for strength in (low, high))
    assert (strong <= weak + 1e-6).all()
    assert (weak <= base + 1e-6).all()
    assert (strong >= 0).all()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_no_strength_no_change(name: str) -> None:
    result = spoiled(name, 0.0)
    assert np.array_equal(result.frames, CLIP)
    assert result.scores.tolist() == maxima().tolist()
    assert result.instruction == "push it"


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_rules_are_pure_and_keep_the_start(name: str, strength: float) -> None:
    before = CLIP.copy()
    one, two = spoiled(name, strength, seed=3), spoiled(name, strength, seed=3)
    assert np.array_equal(CLIP, before)
    assert np.array_equal(one.frames, two.frames)
    assert one.frames.dtype == np.uint8
    assert one.frames.shape[1:] == CLIP.shape[1:]
    if name == "wrong_instruction":
        assert one.instruction == "open the drawer"
        assert np.array_equal(one.frames, CLIP)
    else:
        assert one.instruction == "push it"
        assert one.frames.shape != CLIP.shape or not np.array_equal(one.frames, CLIP)
    assert one.scores.sum() < 10


def test_time_is_rearranged_as_stated() -> None:
    assert np.array_equal(spoiled("freeze").frames, np.repeat(CLIP[:1], FRAMES, axis=0))
    assert np.array_equal(spoiled("reverse").frames, CLIP[::-1])
    assert np.array_equal(spoiled("reverse", 0.5).frames, np.concatenate([CLIP[:6], CLIP[:5:-1]]))
    assert np.array_equal(spoiled("speed_up").frames, CLIP[[0, 3, 6, 9, 11, 11, 11, 11, 11, 11, 11, 11]])
    assert np.array_equal(spoiled("truncated").frames, CLIP[:3])
    for done, strength, shown in (
        (10, 0.2, 9),
        (10, 1.0, 3),
        (6, 0.5, 4),
        (3, 1.0, 2),
    ):  # always before it is done
        material = replace(MATERIAL, done=done)
        rule = DEGRADATIONS["truncated"].rule
        assert np.array_equal(rule(CLIP, strength, np.random.default_rng(0), material), CLIP[:shown])
    assert np.array_equal(spoiled("slow_down").frames[[0, 4, 8]], CLIP[[0, 1, 2]])
    assert np.array_equal(spoiled("loop").frames, CLIP[np.arange(FRAMES) % 3])
    shuffled = spoiled("shuffle").frames
    assert sorted(frame.tobytes() for frame in shuffled) == sorted(frame.tobytes() for frame in CLIP)
    assert not (shuffled == CLIP).all(axis=(1, 2, 3)).any()
    dropped = spoiled("drop_frames").frames
    assert np.array_equal(dropped[[0, -1]], CLIP[[0, -1]])
    assert (dropped[1:] == dropped[:-1]).all(axis=(1, 2, 3)).sum() == 8
    assert np.array_equal(spoiled("wrong_actions").frames[1:], MATERIAL.other_frames[1:])
    assert np.array_equal(spoiled("wrong_actions", 0.5).frames[:6], CLIP[:6])


def test_things_go_double_and_jump() -> None:
    vanished = spoiled("object_vanish").frames
    assert count(vanished, RED).tolist() == [16] + [0] * (FRAMES - 1)
    assert np.abs(vanished[3, 20:24, 7:11].astype(int) - GREY).max() <= 2  # the table, not a hole
    assert count(spoiled("object_vanish", 0.25).frames, RED)[:8].tolist() == [16] * 8
    assert count(spoiled("object_duplicate").frames, RED).tolist() == [16] + [32] * (FRAMES - 1)
    assert count(spoiled("gripper_erased").frames, BLUE).tolist() == [16] + [0] * (FRAMES - 1)
    jumped = spoiled("teleport").frames
    assert count(jumped, RED).tolist() == [16] * FRAMES
    places = [np.argwhere((frame == np.array(RED)).all(axis=-1)).mean(axis=0) for frame in jumped]
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert steps.argmax() == FRAMES // 2 - 1
    assert steps.max() > 8
    assert np.delete(steps, steps.argmax()).max() == 1


def test_pictures_lose_what_is_stated() -> None:
    edges = [np.square(np.diff(spoiled("blur", s).frames.astype(float), axis=2)).mean() for s in (0, 0.3, 1)]
    assert edges[0] > 1.5 * edges[1] > 1.5 * edges[2]
    assert abs(spoiled("blur").frames.mean() - CLIP.mean()) < 1
    plain = np.full((8, 64, 64, 3), 128, np.uint8)
    grain = degrade("noise", plain, "x", maxima(), 0.5, np.random.default_rng(0), Material()).frames
    assert abs(grain.std() - 30) < 1  # no clipping at 128 ± 4 sigma
    light = spoiled("flicker").frames.mean(axis=(1, 2, 3)) / CLIP.mean(axis=(1, 2, 3))
    assert np.allclose(light[::2], 1)
    assert ((light[1::2] > 0.39) & (light[1::2] < 0.71)).all()
    ghosts = spoiled("ghosting").frames
    assert np.abs(ghosts - CLIP.mean(axis=0)).max() <= 0.5
    melted = spoiled("texture_drift").frames
    changes = [np.abs(a.astype(float) - b).mean() for a, b in zip(melted, CLIP, strict=True)]
    assert changes[0] == 0
    assert changes[-1] > 2 * changes[2]


def test_missing_material_and_bad_strength_are_told() -> None:
    rng = np.random.default_rng(0)
    for name, degradation in DEGRADATIONS.items():
        assert degradation.possible(MATERIAL)
        if degradation.needs:
            missing = replace(MATERIAL, **{degradation.needs[0]: None})
            assert not degradation.possible(missing)
            with pytest.raises(UserError, match=f"{name}: needs {degradation.needs[0]}"):
                degrade(name, CLIP, "x", maxima(), 0.5, rng, missing)
    with pytest.raises(UserError, match="unknown degradation 'melt'"):
        degrade("melt", CLIP, "x", maxima(), 0.5, rng, MATERIAL)
    with pytest.raises(UserError, match=r"strength 1\.5 is not within"):
        degrade("blur", CLIP, "x", maxima(), 1.5, rng, MATERIAL)
    with pytest.raises(UserError, match="3 frames is too short"):
        degrade("blur", CLIP[:3], "x", maxima(), 1.0, rng, MATERIAL)
