"""Fresh examples: what is asked anew or spoiled anew carries the rules' labels, and all else stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import made_clip

from roboalign_ray.judge.fresh import FreshExamples
from roboalign_ray.judge.pairs import JudgedPair
from roboalign_ray.judge.rubric import maxima

CLIP, _ = made_clip()
TASKS = {"open": ("open the drawer", "pull it out"), "press": ("press the button",)}


class Pairs:
    """As much of a list of pairs as is looked at."""

    instructions = tuple(told for sentences in TASKS.values() for told in sentences)
    group_ids = tuple(f"sim/{task}/{n}" for task, sentences in TASKS.items() for n in range(len(sentences)))


def pair(kind: str, done: int | None = 5) -> JudgedPair:
    return JudgedPair(
        kind, "sim/open/7", CLIP, 5.0, "open the drawer", maxima(), "simulator", kind, {"done": done}
    )


def test_another_tasks_sentence_costs_what_the_rule_says() -> None:
    fresh = FreshExamples(0.0, 0.999999, Pairs(), 0)
    for kind in ("real", "rollout/swr-t1", "degraded/blur", "counterfactual/wander"):
        [made] = fresh.batch([pair(kind)], 0)
        assert made.instruction == "press the button"
        assert made.scores.tolist() == [0, 0, 1, 1, 1, 2]
        assert made.frames is CLIP
    wrong_already = pair("degraded/wrong_instruction")
    assert fresh.batch([wrong_already], 0) == [wrong_already]


def test_only_faultless_videos_are_spoiled_and_never_twice_alike() -> None:
    fresh = FreshExamples(1.0, 0.0, Pairs(), 0)
    for kind in ("rollout/swr-t1", "degraded/blur"):
        assert all(made.frames is CLIP for made in fresh.batch([pair(kind)] * 8, 0))
    made = fresh.batch([pair("real")] * 200, 3)
    assert np.mean([one.total < 10 for one in made]) > 0.95
    assert len({one.frames.tobytes() for one in made}) > 50
    again, later = fresh.batch([pair("real")] * 200, 3), fresh.batch([pair("real")] * 200, 4)
    assert [one.frames.tobytes() for one in made] == [one.frames.tobytes() for one in again]
    assert [one.frames.tobytes() for one in made] != [one.frames.tobytes() for one in later]


def test_what_was_done_before_the_clip_is_not_run_backwards() -> None:
    fresh = FreshExamples(1.0, 0.0, Pairs(), 1)
    backwards = CLIP[::-1]
    for done, some in ((0, False), (5, True)):
        made = fresh.batch([pair("real", done)] * 300, 0)
        found = any(one.frames.shape == CLIP.shape and np.array_equal(one.frames, backwards) for one in made)
        assert found is some


def test_shares_are_kept() -> None:
    made = FreshExamples(0.5, 0.25, Pairs(), 2).batch([pair("real")] * 2000, 0)
    asked = np.mean([one.instruction != "open the drawer" for one in made])
    assert asked == pytest.approx(0.25, abs=0.04)
    spoiled = np.mean([one.frames is not CLIP for one in made])
    assert spoiled == pytest.approx(0.5, abs=0.04)
