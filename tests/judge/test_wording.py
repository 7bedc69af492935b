"""Sentences in other words and turned round: what stays, what changes, and that trials use frames of their own."""

from __future__ import annotations

import re

import numpy as np
import pytest

from roboalign_ray.episodes.sources.metaworld_tasks import SENTENCES
from roboalign_ray.judge.bench import wording
from roboalign_ray.judge.bench.wording import (
    CONTRADICTIONS,
    PARAPHRASES,
    negated,
    other_object,
    other_verb,
    reworded,
)

ALL = [told for sentences in SENTENCES.values() for told in sentences]


def words(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+", sentence.lower())


@pytest.mark.parametrize("trial", [True, False])
def test_frames_keep_the_sentence_as_it_is(trial: bool) -> None:
    for name in ("politeness", "fillers"):
        for seed in range(30):
            made = PARAPHRASES[name]("open the drawer", np.random.default_rng(seed), trial)
            assert "open the drawer" in made
            assert made != "open the drawer"
            assert not {"not", "don", "never"} & set(words(made))


def test_what_a_judge_is_tried_on_was_not_trained_on() -> None:
    pairs = ((wording._POLITE, wording._POLITE_TRIED), (wording._FILLERS, wording._FILLERS_TRIED))
    for trained, tried in pairs:
        shared = set(trained) & set(tried)
        assert shared <= {"please {} now"}


@pytest.mark.parametrize("sentence", ALL)
def test_case_signs_and_order_keep_the_words(sentence: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert words(PARAPHRASES["case"](sentence, rng, True)) == words(sentence)
        assert words(PARAPHRASES["punctuation"](sentence, rng, True)) == words(sentence)
        assert sorted(words(PARAPHRASES["word_order"](sentence, rng, True))) == sorted(words(sentence))


def test_the_last_phrase_comes_first() -> None:
    rng = np.random.default_rng(0)
    made = PARAPHRASES["word_order"]("pull the drawer out by its handle", rng, True)
    assert made == "by its handle, pull the drawer out"
    assert PARAPHRASES["word_order"]("open the tap", rng, True) == "open the tap"


def test_a_typo_is_one_edit_of_one_long_word() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        made = PARAPHRASES["typos"]("open the drawer", rng, True)
        assert made.startswith("open the ")
        wrong, right = made.split()[-1], "drawer"
        lost = {right[:n] + right[n + 1 :] for n in range(6)}
        doubled = {right[:n] + right[n] + right[n:] for n in range(6)}
        exchanged = {right[:n] + right[n + 1] + right[n] + right[n + 2 :] for n in range(5)}
        assert wrong in lost | doubled | exchanged
        assert (wrong[0], wrong[-1]) == ("d", "r")


def test_synonyms_exchange_one_or_two_words() -> None:
    made = {PARAPHRASES["synonyms"]("close the drawer", np.random.default_rng(n), True) for n in range(9)}
    assert made == {"shut the drawer"}
    made = {PARAPHRASES["synonyms"]("open the tap", np.random.default_rng(n), True) for n in range(30)}
    assert made == {"open up the tap", "open the faucet", "open up the faucet"}


@pytest.mark.parametrize("sentence", ALL)
def test_what_is_turned_round_is_no_true_sentence_of_the_task(sentence: str) -> None:
    task = next(name for name, told in SENTENCES.items() if sentence in told)
    for seed in range(5):
        for make in CONTRADICTIONS.values():
            made = make(sentence, np.random.default_rng(seed), True)
            assert made is None or made not in SENTENCES[task]


def test_contraries_are_the_ones_a_person_would_name() -> None:
    rng = np.random.default_rng(0)
    assert other_verb("open the drawer", rng) == "close the drawer"
    assert other_verb("slide the window shut", rng) == "slide the window open"
    assert other_verb("shut the open drawer", rng) == "open the shut drawer"
    assert (
        other_verb("push the handle until the window is closed", rng)
        == "push the handle until the window is open"
    )
    assert other_verb("start the coffee machine", rng) == "stop the coffee machine"
    assert other_verb("wave", rng) is None
    assert other_object("wave", rng) is None
    objects = {other_object("open the drawer", np.random.default_rng(n)) for n in range(60)}
    assert {"open the window", "open the door"} <= objects
    assert all(made.startswith("open the ") and "drawer" not in made for made in objects)
    same = {other_object("push the red cylinder", np.random.default_rng(n)) for n in range(60)}
    assert "push the puck" not in same  # the same thing by its other name
    assert all(
        {"not", "don", "never"} & set(words(negated("go", np.random.default_rng(n), True))) for n in range(20)
    )


def test_training_combines_paraphrases() -> None:
    made = {reworded("open the drawer", np.random.default_rng(n)) for n in range(200)}
    assert len(made) > 100
