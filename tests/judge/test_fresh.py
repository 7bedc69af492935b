"""Fresh examples: what is asked anew or spoiled anew carries the rules' labels, and all else stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_clips import made_clip

from roboalign_ray.judge.bench.wording import CONTRADICTIONS, PARAPHRASES
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.on_the_fly_examples import FreshExamples, FreshShares
from roboalign_ray.judge.student.spelling import words_of

CLIP, _ = made_clip()
TASKS = {"open": ("open the drawer", "pull it out"), "press": ("press the button",)}


class Pairs:
    """As much of a list of pairs as is looked at."""

    instructions = tuple(told for sentences in TASKS.values() for told in sentences)
    group_ids = tuple(f"sim/{task}/{n}" for task, sentences in TASKS.items() for n in range(len(sentences)))
    kinds = ("real",) * len(instructions)


def pair(kind: str, done: int | None = 5, group: str = "sim/open/7", frames: np.ndarray = CLIP) -> JudgedPair:
    return JudgedPair(
        kind, group, frames, 5.0, "open the drawer", maxima(), "simulator", kind, {"done": done}
    )


def test_what_is_asked_for_otherwise_costs_what_the_rule_says() -> None:
    fresh = FreshExamples(FreshShares(asked_else=1.0), Pairs(), 0)
    asked = set()
    for kind in ("real", "rollout/swr-t1", "degraded/blur", "counterfactual/wander"):
        for made in fresh.batch([pair(kind)] * 300, 0):
            asked.add(made.instruction)
            assert made.scores.tolist() == [0, 0, 1, 1, 1, 2]
            assert made.frames is CLIP
    assert "open the drawer" not in asked
    assert {"press the button", "close the drawer", "do not open the drawer", "open the window"} <= asked
    wrong_already = pair("degraded/wrong_instruction")
    assert fresh.batch([wrong_already], 0) == [wrong_already]


def test_what_is_not_done_is_not_forbidden() -> None:
    fresh = FreshExamples(FreshShares(asked_else=1.0), Pairs(), 0)
    undone = replace(pair("real"), scores=np.array([1, 0, 1, 1, 1, 2], np.float32))
    asked = {made.instruction for made in fresh.batch([undone] * 300, 0)}
    assert not [told for told in asked if {"not", "don't", "never", "avoid", "but"} & set(told.split())]
    assert "close the drawer" in asked


def test_sentences_of_wrongly_asked_pairs_stand_for_no_task() -> None:
    class Wrong(Pairs):
        instructions = (*Pairs.instructions, "push the puck")
        group_ids = (*Pairs.group_ids, "sim/press/9")
        kinds = (*Pairs.kinds, "degraded/wrong_instruction")

    made = FreshExamples(FreshShares(asked_else=1.0), Wrong(), 0).batch([pair("real")] * 200, 0)
    assert "push the puck" not in {one.instruction for one in made}


def test_other_words_change_no_score() -> None:
    made = FreshExamples(FreshShares(reworded=1.0), Pairs(), 0).batch([pair("rollout/x")] * 300, 0)
    assert len({one.instruction for one in made}) > 50
    assert all(one.scores.tolist() == maxima().tolist() and one.frames is CLIP for one in made)


def test_parts_come_from_another_faultless_clip_of_the_batch() -> None:
    colours = {"sim/open/7": 0, "sim/open/8": 50, "sim/press/1": 100, "sim/press/2": 150}
    batch = [pair("real", 5, group, np.full_like(CLIP, value)) for group, value in colours.items()]
    batch[3] = replace(batch[3], kind="degraded/static_noise")
    fresh = FreshExamples(FreshShares(spoiled=1.0, local=1.0), Pairs(), 0)
    cut_in = set()
    for step in range(400):
        shown = fresh.batch(batch, step)[0].frames
        if set(np.unique(shown)) <= set(colours.values()):  # no rule that makes pixels of its own
            cut_in |= set(np.unique(shown)) - {0}
    assert cut_in == {50, 100}


def test_only_faultless_videos_are_spoiled_and_never_twice_alike() -> None:
    fresh = FreshExamples(FreshShares(spoiled=1.0), Pairs(), 0)
    for kind in ("rollout/swr-t1", "degraded/blur"):
        assert all(made.frames is CLIP for made in fresh.batch([pair(kind)] * 8, 0))
    made = fresh.batch([pair("real")] * 200, 3)
    assert np.mean([one.total < 10 for one in made]) > 0.95
    assert len({one.frames.tobytes() for one in made}) > 50
    again, later = fresh.batch([pair("real")] * 200, 3), fresh.batch([pair("real")] * 200, 4)
    assert [one.frames.tobytes() for one in made] == [one.frames.tobytes() for one in again]
    assert [one.frames.tobytes() for one in made] != [one.frames.tobytes() for one in later]


def test_what_was_done_before_the_clip_is_not_run_backwards() -> None:
    fresh = FreshExamples(FreshShares(spoiled=1.0), Pairs(), 1)
    backwards = CLIP[::-1]
    for done, some in ((0, False), (5, True)):
        made = fresh.batch([pair("real", done)] * 300, 0)
        found = any(one.frames.shape == CLIP.shape and np.array_equal(one.frames, backwards) for one in made)
        assert found is some


def test_shares_are_kept() -> None:
    shares = FreshShares(spoiled=0.5, asked_else=0.25)
    made = FreshExamples(shares, Pairs(), 2).batch([pair("real")] * 2000, 0)
    asked = np.mean([one.instruction != "open the drawer" for one in made])
    assert asked == pytest.approx(0.25, abs=0.04)
    spoiled = np.mean([one.frames is not CLIP for one in made])
    assert spoiled == pytest.approx(0.5, abs=0.04)


def test_all_that_it_may_ask_is_made_of_its_words() -> None:
    known = FreshExamples(FreshShares(), Pairs(), 0).words()
    rules = {**PARAPHRASES, **CONTRADICTIONS}
    del rules["typos"]
    rng = np.random.default_rng(0)
    for sentence in Pairs.instructions:
        for rule in rules.values():
            asked = [rule(sentence, rng, False) or "" for _ in range(60)]
            assert words_of(asked) <= known, words_of(asked) - known
    assert "faucet" in known
    assert "zebra" not in known
