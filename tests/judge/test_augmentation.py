"""Augmented videos: moved and lit alike in every frame, by as much as was said, and worth what they were."""

from __future__ import annotations

import numpy as np
from made_clips import made_clip

from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.augmentation import Augmentation
from roboalign_ray.judge.student.on_the_fly_examples import FreshExamples, FreshShares

CLIP, _ = made_clip()
COUNT = 200


def pairs(frames: np.ndarray = CLIP, count: int = COUNT) -> list[JudgedPair]:
    return [
        JudgedPair("p", "sim/open/7", frames, 5.0, "open the drawer", maxima(), "simulator", "real")
    ] * count


def test_all_frames_move_alike_and_no_further_than_told() -> None:
    """Every frame is a picture of where each pixel stands, and one counter that tells the frame."""
    side = 32
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    frames = np.stack([np.stack([rows, columns, np.full_like(rows, t)], -1) for t in range(3)])
    moves = set()
    for made in Augmentation(3 / side, 0.0, 0).batch(pairs(frames), 0):
        assert made.frames.dtype == np.uint8
        down, right = (int(x) - side // 2 for x in made.frames[0, side // 2, side // 2, :2])
        moves.add((down, right))
        rows_seen = np.clip(np.arange(side) + down, 0, side - 1)
        columns_seen = np.clip(np.arange(side) + right, 0, side - 1)
        np.testing.assert_array_equal(made.frames, frames[:, rows_seen][:, :, columns_seen])
    assert {down for down, _ in moves} == {right for _, right in moves} == set(range(-3, 4))


def test_light_changes_pixels_and_not_places() -> None:
    level = np.full((4, 16, 16, 3), 100, np.uint8)
    means = [made.frames.mean() for made in Augmentation(0.0, 0.2, 0).batch(pairs(level), 0)]
    assert 77 <= min(means) < 85  # of a level picture brightness alone changes, and each change rounds down
    assert 115 < max(means) <= 120
    made = Augmentation(0.0, 0.2, 0).batch(pairs(), 0)
    still = np.abs(np.diff(CLIP.astype(int), axis=0)).max(-1) == 0
    for one in made[:20]:
        difference = np.abs(np.diff(one.frames.astype(int), axis=0)).max(-1)
        assert (difference[still] <= 2).mean() > 0.99  # contrast is about each frame's own mean


def test_labels_and_sentences_stay_and_draws_follow_from_the_step() -> None:
    augmentation = Augmentation(0.1, 0.2, 3)
    first, again, later = (augmentation.batch(pairs(), step) for step in (5, 5, 6))
    assert [one.frames.tobytes() for one in first] == [one.frames.tobytes() for one in again]
    assert [one.frames.tobytes() for one in first] != [one.frames.tobytes() for one in later]
    assert len({one.frames.tobytes() for one in first}) > COUNT * 0.9
    assert all(one.scores.tolist() == maxima().tolist() and one.instruction for one in first)
    assert CLIP.tobytes() == pairs(count=1)[0].frames.tobytes()


def test_nothing_asked_for_changes_nothing() -> None:
    assert all(np.array_equal(one.frames, CLIP) for one in Augmentation(0.0, 0.0, 0).batch(pairs(), 0))


def test_how_a_video_is_moved_does_not_tell_whether_it_was_spoiled() -> None:
    side, many = 64, 2000
    mark = np.zeros((4, side, side, 3), np.uint8)
    mark[:, side // 2, side // 2] = 255

    class Pairs:
        instructions, group_ids, kinds = ("open the drawer",), ("sim/open/7",), ("real",)

    spoiled = np.array(
        [
            one.total < 10
            for one in FreshExamples(FreshShares(spoiled=0.5), Pairs(), 0).batch(pairs(CLIP, many), 0)
        ]
    )
    moved = Augmentation(4 / side, 0.0, 0).batch(pairs(mark, many), 0)
    places = np.array([np.argwhere(one.frames[0, ..., 0])[0] for one in moved])
    assert np.abs(np.corrcoef(spoiled, places.T)[0, 1:]).max() < 0.1
