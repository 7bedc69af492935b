"""What is asked, what may be answered, and what becomes of an answer: against an independent schema checker."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.config import ConfigError, TeacherConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.protocol import Judgement, judgement_of
from roboalign_ray.judge.rubric import DIMENSIONS, maxima, names
from roboalign_ray.judge.teacher.parsing import Answer, parse_answer
from roboalign_ray.judge.teacher.prompt import (
    answer_grammar,
    answer_schema,
    opened,
    prompt_text,
    target_answer,
)
from roboalign_ray.judge.teacher.prompt_contract import check_asking, write_asking

CONFIG = TeacherConfig()
FULL = {name: float(top) for name, top in zip(names(), maxima(), strict=True)}


def answer(rationale: str = "all is well", **scores: object) -> str:
    return json.dumps({**FULL, **scores, "rationale": rationale})


points = st.tuples(*(st.integers(0, 2 * dimension.maximum).map(lambda n: n / 2) for dimension in DIMENSIONS))


@given(points, st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_target_fits_the_schema_and_reads_back(scores: tuple[float, ...], reasoning: bool) -> None:
    config = TeacherConfig(reasoning=reasoning)
    text = target_answer(np.array(scores), config)
    rest = text.rsplit("</think>", 1)[-1]
    jsonschema.validate(json.loads(rest), answer_schema(config))
    read = parse_answer(opened(text, "assistant\n"))
    assert isinstance(read, Answer)
    np.testing.assert_array_equal(read.scores, scores)
    assert bool(read.reasoning) is reasoning


def test_the_schema_holds_steps_and_maxima() -> None:
    schema = answer_schema(TeacherConfig(score_step=0.25))
    for bad in (
        {"contact_realism": 1.25},
        {"contact_realism": 0.3},
        {"contact_realism": "1"},
        {"physics_adherence": -0.5},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(answer(**bad)), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(FULL, schema)
    jsonschema.validate(json.loads(answer(contact_realism=0.75)), schema)


def held(config: TeacherConfig, text: str) -> bool:
    """Whether a text is one that the grammar allows, by its reference engine, a byte at a time."""
    xgrammar = pytest.importorskip("xgrammar", reason="comes with the extra 'teacher'")
    info = xgrammar.TokenizerInfo([bytes([n]) for n in range(256)] + [b"</s>"], stop_token_ids=[256])
    compiled = xgrammar.GrammarCompiler(info).compile_grammar(answer_grammar(config))
    matcher = xgrammar.GrammarMatcher(compiled)
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)


@given(points, st.text(max_size=30), st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_grammar_takes_what_the_schema_takes_as_targets_write_it(
    scores: tuple[float, ...], rationale: str, reasoning: bool
) -> None:
    config = TeacherConfig(reasoning=reasoning, rationale_characters=20)
    rest = target_answer(np.array(scores), config, rationale or "x").rsplit("</think>\n", 1)[-1]
    assert held(config, rest.removeprefix("\n")) or len(rationale) > 20
    valid = jsonschema.Draft7Validator(answer_schema(config)).is_valid(json.loads(rest))
    assert held(config, ("\n" if reasoning else "") + rest) is valid
    assert not held(config, rest.replace('": ', '":'))


@pytest.mark.parametrize(
    "changes", [{"contact_realism": 0.3}, {"contact_realism": 1.5}, {"physics_adherence": -1}, {"other": 1}]
)
def test_the_grammar_refuses_what_the_schema_refuses(changes: dict[str, float]) -> None:
    plain = {name: int(top) for name, top in FULL.items()}
    config = TeacherConfig(reasoning=False)
    assert held(config, json.dumps({**plain, "rationale": "x"}))
    assert not held(config, json.dumps({**plain, **changes, "rationale": "x"}))
    assert not held(config, json.dumps(plain))


def test_scores_between_the_steps_are_rounded_in_targets() -> None:
    read = parse_answer(
        target_answer(np.array([2.8, 1.7, 0.2, 0.3, 0.99, 1.0]), TeacherConfig(reasoning=False))
    )
    assert isinstance(read, Answer)
    assert read.scores.tolist() == [3.0, 1.5, 0.0, 0.5, 1.0, 1.0]


def test_a_step_that_does_not_divide_a_point_is_refused() -> None:
    with pytest.raises(ConfigError, match="score_step"):
        TeacherConfig(score_step=0.3)


def test_the_prompt_has_every_level_of_the_rubric_and_the_instruction() -> None:
    text = prompt_text(" open the drawer ", CONFIG)
    for dimension in DIMENSIONS:
        assert dimension.name in text
        assert all(words in text for words in dimension.levels.values())
    assert "Instruction: open the drawer\n" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no answer"),
        ("I would say 3, 2, 1, 1, 1, 2.", "not a JSON object"),
        (f"The scores: {answer()}", "not a JSON object"),
        (answer()[:-20], "not a JSON object"),
        ("[3, 2, 1, 1, 1, 2]", "not a JSON object"),
        (f"<think>it looks good {answer()}", "the reasoning does not end"),
        (answer(contact_realism=None), "no contact_realism"),
        (answer(contact_realism="1"), "contact_realism is not a number"),
        (answer(contact_realism=True), "contact_realism is not a number"),
        (answer(contact_realism=1.5), "contact_realism is 1.5, not within 0 to 1"),
        (answer(physics_adherence=-1), "physics_adherence is -1"),
        (answer(physics_adherence=float("nan")), "NaN is not a score"),
        (answer().replace('"rationale"', '"why"'), "no rationale"),
        (answer().replace('"rationale"', '"contact_realism"'), "a key occurs twice"),
        ("[" * 100_000, "not a JSON object"),
        (answer().replace("3.0", "1e999"), "instruction_following is not a number"),
    ],
)
def test_what_cannot_be_read_is_a_failure_with_its_reason(text: str, why: str) -> None:
    read = parse_answer(text)
    assert isinstance(read, Failed)
    assert read.kind == "parse"
    assert why in read.reason


@pytest.mark.parametrize(
    "form", ["{}", "<think>hm, 0 perhaps</think>\n\n{}", "hm\n</think>{}", "```json\n{}\n```"]
)
def test_reasoning_and_fences_around_an_answer_are_understood(form: str) -> None:
    read = parse_answer(form.replace("{}", answer()))
    assert isinstance(read, Answer)
    assert read.scores.tolist() == maxima().tolist()
    assert read.rationale == "all is well"


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_text_at_all_raises(text: str) -> None:
    assert isinstance(parse_answer(text), Failed | Answer)


def test_unreadable_answers_are_left_out_and_counted() -> None:
    texts = [answer("a", contact_realism=0), "garbage", answer("b"), "<think>"]
    judged = judgement_of(texts)
    assert isinstance(judged, Judgement)
    assert judged.scores[names().index("contact_realism")] == 0.5
    assert judged.std[names().index("contact_realism")] == 0.5
    assert judged.std[0] == 0
    assert judged.samples.shape == (2, 6)
    assert [failure.kind for failure in judged.failures] == ["parse", "parse"]
    assert judged.texts == tuple(texts)
    assert judged.total == pytest.approx(9.5)


def test_the_rationale_is_that_of_the_answer_nearest_to_the_mean() -> None:
    judged = judgement_of(
        [answer("low", instruction_following=0), answer("middle", instruction_following=2), answer("high")]
    )
    assert isinstance(judged, Judgement)
    assert judged.rationale == "middle"


def test_a_video_without_a_readable_answer_is_failed() -> None:
    judged = judgement_of(["garbage", "garbage", ""])
    assert isinstance(judged, Failed)
    assert "none of 3 answers" in judged.reason


def test_a_published_model_is_not_asked_by_the_instruction_alone() -> None:
    bare = load_job("demo").teacher
    with pytest.raises(UserError, match=r"^teacher\.prompt: 'Qwen/Qwen3-VL-8B-Thinking' would be given only"):
        check_asking("Qwen/Qwen3-VL-8B-Thinking", bare)
    check_asking("Qwen/Qwen3-VL-8B-Thinking", load_job("paper_rt1").teacher)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"frames": 4}, "frames"),
        ({"reasoning": False}, "reasoning"),
        ({"prompt": {"opening": "?"}}, "prompt.opening"),
    ],
)
def test_a_trained_teacher_is_asked_as_it_was_trained(
    change: dict[str, object], key: str, tmp_path: Path
) -> None:
    check_asking(str(tmp_path), CONFIG)  # nothing is known of it
    write_asking(tmp_path, CONFIG)
    check_asking(str(tmp_path), TeacherConfig(temperature=0, samples=1, backend="vllm"))
    with pytest.raises(UserError, match=rf"^teacher\.{key}: this teacher was trained with {key} "):
        check_asking(str(tmp_path), TeacherConfig.model_validate(change))
