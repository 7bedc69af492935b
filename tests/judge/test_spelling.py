"""Typing errors: the slips that people make are mended, other words are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from roboalign_ray.judge.bench.wording import PARAPHRASES, taught_phrases
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.spelling import mended, words_of
from roboalign_ray.judge.student.text_encoder import word_pieces
from tests.tiny_student import tiny_student

SENTENCES = ("open the drawer", "push the round plate into the net", "turn the faucet on", "close the window")
KNOWN = words_of([*SENTENCES, *taught_phrases()])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("drawer", "drawer"),  # known
        ("darwer", "drawer"),  # exchanged
        ("drwer", "drawer"),  # lost
        ("drrawer", "drawer"),  # doubled
        ("drawee", "drawer"),  # e is beside r
        ("drswer", "drawer"),  # beside the right key
        ("drawert", "drawer"),  # and joined by the next key
        ("winodw", "window"),
        ("oepn", "open"),
        ("opne", "open"),
        ("pen", "pen"),  # too short
        ("opn", "opn"),
        ("rdawer", "rdawer"),  # the first letter must be right
        ("xylophone", "xylophone"),
        ("place", "place"),  # c is not beside t: another word than "plate"
        ("closd", "closed"),  # a letter lost comes before one exchanged ("close")
    ],
)
def test_slips_are_mended_and_other_words_left_alone(typed: str, meant: str) -> None:
    assert mended(typed, KNOWN) == meant


def test_where_two_words_are_as_near_neither_is_taken() -> None:
    assert mended("plste", frozenset({"plate", "paste"})) == "plate"
    assert mended("hanlde", frozenset({"handle", "hanled"})) == "hanlde"


def test_every_single_slip_in_a_sentence_reads_as_the_sentence() -> None:
    rng = np.random.default_rng(0)
    for sentence in SENTENCES:
        for _ in range(50):
            typed = PARAPHRASES["typos"](sentence, rng, True)
            assert word_pieces(typed, KNOWN) == word_pieces(sentence, KNOWN), typed


def test_without_known_words_sentences_are_read_as_they_stand() -> None:
    assert word_pieces("opne the drwer") != word_pieces("open the drawer")
    assert word_pieces("plaese open the drawer", KNOWN) == word_pieces("open the drawer")


def test_a_student_keeps_the_words_that_it_was_trained_on(tmp_path) -> None:
    student = tiny_student()
    assert not student.words
    student.learn_words(KNOWN)
    video = np.random.default_rng(0).integers(0, 256, (1, 6, 16, 16, 3), dtype=np.uint8)
    plain = student.score(video, ["open the drawer"]).scores
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    assert loaded.words == KNOWN == loaded.grown(loaded.config).words
    for judge in (student, loaded):
        np.testing.assert_array_equal(judge.score(video, ["opne the drawwer"]).scores, plain)
