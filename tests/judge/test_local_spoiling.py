"""Local degradations on clips whose frames are numbered: which frame stands where is read from the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import BLUE, RED, made_clip

from roboalign_ray.judge.bench import local
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import LOCAL, degrade
from roboalign_ray.judge.bench.parts import THIRDS, part_of, seen, third_of
from roboalign_ray.judge.rubric import maxima

LENGTH = 12
NUMBERED = np.stack([np.full((16, 16, 3), 10 * n, np.uint8) for n in range(LENGTH)])
SCENE, EPISODE = NUMBERED + 3, NUMBERED + 6  # the last digit tells whose frame it is
PARTS = (range(1, 4), range(4, 8), range(8, 12))


def spoiled(name: str, third: int, strength: float = 1.0, seed: int = 0, clip: np.ndarray = NUMBERED):
    material = Material(other_scene=SCENE, other_episode=EPISODE, third=third)
    return getattr(local, name)(clip, strength, np.random.default_rng(seed), material)


def order(frames: np.ndarray) -> list[int]:
    """Numbers of the frames of NUMBERED; 100 more for those of SCENE, 200 more for those of EPISODE."""
    assert (np.ptp(frames, axis=(1, 2, 3)) == 0).all()
    values = frames[:, 0, 0, 0].astype(int)
    return (values // 10 + 100 * (values % 10 // 3)).tolist()


ORDERS = {
    "scene_cut": [
        [0, *range(101, 112)],
        [*range(4), *range(104, 112)],
        [*range(8), *range(108, 112)],
    ],
    "episode_cut": [
        [0, *range(201, 212)],
        [*range(4), *range(204, 212)],
        [*range(8), *range(208, 212)],
    ],
    "scene_inserted": [
        [0, 101, 102, 103, *range(4, 12)],
        [*range(4), 104, 105, 106, 107, *range(8, 12)],
        [*range(8), 108, 109, 110, 111],
    ],
    "episode_inserted": [
        [0, 201, 202, 203, *range(4, 12)],
        [*range(4), 204, 205, 206, 207, *range(8, 12)],
        [*range(8), 208, 209, 210, 211],
    ],
    "local_reverse": [
        [0, 3, 2, 1, *range(4, 12)],
        [*range(4), 7, 6, 5, 4, *range(8, 12)],
        [*range(8), 11, 10, 9, 8],
    ],
    "reverse_from": [
        [0, *range(11, 0, -1)],
        [*range(4), *range(11, 3, -1)],
        [*range(8), 11, 10, 9, 8],
    ],
    "boomerang": [
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
        [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3],
        [*range(9), 7, 6, 5],
    ],
    "jump_back": [
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8],
        [*range(8), 4, 5, 6, 7],
        [*range(10), 6, 7],
    ],
    "local_freeze": [
        [0, 0, 0, 0, *range(4, 12)],
        [*range(4), 3, 3, 3, 3, *range(8, 12)],
        [*range(8), 7, 7, 7, 7],
    ],
    "stutter": [
        [0, 0, 2, 2, *range(4, 12)],
        [*range(4), 3, 5, 5, 7, *range(8, 12)],
        [*range(8), 7, 9, 9, 11],
    ],
    "skip": [[0, *range(4, 12)], [*range(4), *range(8, 12)], [*range(8), 11]],
    "rush": [
        [0, 3, 3, 3, *range(4, 12)],
        [*range(4), 6, 7, 7, 7, *range(8, 12)],
        [*range(8), 10, 11, 11, 11],
    ],
}


@pytest.mark.parametrize("name", ORDERS)
def test_frames_stand_where_the_rule_says(name: str) -> None:
    assert [order(spoiled(name, third)) for third in range(THIRDS)] == ORDERS[name]


def test_a_local_shuffle_moves_every_frame_of_its_part_and_no_other() -> None:
    for third, part in enumerate(PARTS):
        shown = order(spoiled("local_shuffle", third))
        assert sorted(shown[n] for n in part) == list(part)
        assert all((shown[n] != n) == (n in part) for n in range(LENGTH))


TEXTURED = np.random.default_rng(1).integers(40, 200, (LENGTH, 32, 32, 3), dtype=np.uint8)
LOOKS = (
    "double_exposure",
    "split_picture",
    "blank",
    "light_jump",
    "colour_jump",
    "local_blur",
    "local_noise",
    "pixelated",
    "occluded",
    "view_jump",
)


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("seed", range(6))
def test_looks_change_in_the_part_and_nowhere_else(name: str, seed: int) -> None:
    for third, part in enumerate(PARTS):
        shown = spoiled(name, third, seed=seed, clip=TEXTURED)
        assert shown.shape == TEXTURED.shape
        changed = (shown != TEXTURED).mean(axis=(1, 2, 3))
        assert [n for n in range(LENGTH) if changed[n]] == list(part)
        assert changed[list(part)].min() > 0.2


def test_looks_are_what_they_are_called() -> None:
    inside = slice(4, 8)
    for seed in range(8):
        pictures = spoiled("blank", 1, seed=seed, clip=TEXTURED)[inside]
        assert (pictures == pictures[0, 0, 0]).all()  # one colour
        light = spoiled("light_jump", 1, seed=seed, clip=TEXTURED)[inside].mean() - TEXTURED[inside].mean()
        assert abs(light) > 30
        shown = spoiled("view_jump", 1, seed=seed, clip=TEXTURED)[inside]
        assert set(np.unique(shown[0])) <= set(np.unique(TEXTURED[4]))  # pixels move, none is new
        blocks = spoiled("pixelated", 1, seed=seed, clip=TEXTURED)[inside].reshape(4, 8, 4, 8, 4, 3)
        assert (blocks == blocks[:, :, :1, :, :1]).all()
        halves = (spoiled("split_picture", 1, seed=seed, clip=TEXTURED)[4] == TEXTURED[4]).all(axis=-1)
        assert halves.mean() == pytest.approx(0.5, abs=0.01)
    edges = [
        np.abs(np.diff(v[inside].astype(int), axis=2)).mean()
        for v in (spoiled("local_blur", 1, clip=TEXTURED), TEXTURED)
    ]
    assert edges[0] < edges[1] / 4


def test_things_vanish_or_jump_and_come_back() -> None:
    clip, _ = made_clip()

    def count(frames: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
        return (frames == np.array(colour)).all(axis=-1).sum(axis=(1, 2)).tolist()

    gone = spoiled("things_vanish", 1, clip=clip)
    assert count(gone, RED) == [16] * 4 + [0] * 4 + [16] * 4
    # The gripper comes down by half a pixel a frame: what never leaves a place is part of the median.
    blue = count(gone, BLUE)
    assert blue[:4] == blue[8:] == [16] * 4
    assert max(blue[4:8]) < 16
    jumped = spoiled("things_jump", 1, clip=clip)
    assert np.array_equal(jumped[[*range(4), *range(8, 12)]], clip[[*range(4), *range(8, 12)]])
    places = [
        np.argwhere((frame == np.array(RED)).all(axis=-1)).mean(axis=0) for frame in (jumped[5], clip[5])
    ]
    assert np.linalg.norm(places[0] - places[1]) > 0.15 * clip.shape[1]


def test_the_weaker_the_shorter_and_never_the_first_frame() -> None:
    for length in range(4, 40):
        covered: set[int] = set()
        for third in range(THIRDS):
            whole = third_of(length, third)
            covered |= set(range(whole.first, whole.end))
            assert 1 <= whole.first < whole.end <= length
            for strength in (0.1, 0.5, 1.0):
                part = part_of(length, third, strength, np.random.default_rng(length))
                assert whole.first <= part.first < part.end <= whole.end
                assert part.length == max(1, min(whole.length, round(strength * whole.length)))
        assert covered == set(range(1, length))
    flash = spoiled("blank", 2, strength=0.1)
    assert (flash != NUMBERED).any(axis=(1, 2, 3)).sum() == 1


def test_every_third_is_drawn_where_none_is_named() -> None:
    begins = set()
    for seed in range(40):
        shown = local.scene_inserted(NUMBERED, 1.0, np.random.default_rng(seed), Material(other_scene=SCENE))
        begins.add(next(n for n, number in enumerate(order(shown)) if number >= 100))
    assert begins == {1, 4, 8}


def test_what_cannot_be_seen_costs_nothing() -> None:
    still = np.repeat(TEXTURED[:1], LENGTH, axis=0)
    assert seen(still, still) == 0
    assert seen(TEXTURED, TEXTURED[::-1]) == 1
    faint = still.copy()
    faint[5, :8, :8] += 9  # halfway between 4 and 14 grey levels
    assert seen(still, faint) == pytest.approx(0.5)
    for name, costs in (("local_freeze", False), ("reverse_from", False), ("blank", True)):
        made = degrade(name, still, "x", maxima(), 1.0, np.random.default_rng(0), Material(third=1))
        assert bool(made.scores.sum() < 10) is costs, name


def test_each_costs_at_least_a_third_of_the_range_at_any_length() -> None:
    """A quarter is what the gate asks for."""
    for rule in LOCAL:
        weak, strong = rule.scores(maxima(), 0.01), rule.scores(maxima(), 1.0)
        assert weak.tolist() == strong.tolist()
        assert weak.sum() < 10 * 2 / 3, rule.name
        assert rule.scores(maxima(), 1.0, 0.5).sum() == pytest.approx((10 + strong.sum()) / 2)


def test_clips_of_other_sizes_and_lengths_are_fitted() -> None:
    other = np.stack([np.full((40, 24, 3), 10 * n + 3, np.uint8) for n in range(6)])
    material = Material(other_scene=other, third=1)
    shown = local.scene_cut(NUMBERED, 1.0, np.random.default_rng(0), material)
    assert order(shown) == [*range(4), 104, *[105] * 7]
