"""Parses a teacher's raw answer into six scores and a rationale, or gives the reason why it cannot be read.

    <think>reasoning</think> {"instruction_following": 2.5, …, "rationale": "…"}

Nothing is guessed: no number is extracted from prose, no missing score is filled in, no score is clipped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.rubric import DIMENSIONS

THINK, END_OF_THINKING = "<think>", "</think>"
RATIONALE = "rationale"
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """A parsed answer: scores float64 [6] in rubric points, the rationale, and the reasoning before it ("" if none)."""

    scores: np.ndarray
    rationale: str
    reasoning: str = ""


def parse_answer(text: str) -> Answer | Failed:
    """Parse an answer. The text after the last </think> must be one JSON object with all six scores and a rationale."""
    reasoning, closed, rest = text.rpartition(END_OF_THINKING)
    if not closed and THINK in text:
        return Failed("the reasoning does not end", "parse")
    try:
        content = _object(rest)
        scores = np.array([_score(content, number) for number in range(len(DIMENSIONS))])
        rationale = content.get(RATIONALE)
        if not isinstance(rationale, str):
            raise ValueError(f"no {RATIONALE}")
    except ValueError as error:
        return Failed(str(error), "parse")
    except OverflowError:
        return Failed("a score is not a finite number", "parse")
    return Answer(scores, rationale.strip(), reasoning.removeprefix(THINK).strip())


def _object(text: str) -> Mapping[str, Any]:
    text = text.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON object ({error.msg})" if text else "no answer") from None
    except RecursionError:
        raise ValueError("not a JSON object (nested too deep)") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a score")


def _score(content: Mapping[str, Any], number: int) -> float:
    dimension = DIMENSIONS[number]
    value = content.get(dimension.name)
    if value is None:
        raise ValueError(f"no {dimension.name}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{dimension.name} is not a number")
    if not 0 <= value <= dimension.maximum:
        raise ValueError(f"{dimension.name} is {value:g}, not within 0 to {dimension.maximum}")
    return float(value)
