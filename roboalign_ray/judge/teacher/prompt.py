"""The prompt of a teacher and the form of its answer, both derived from the rubric.

Training and all backends use the same texts: the prompt, the target answer of a labelled video, and the grammar and
JSON schema that constrain a model's answers to that form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from roboalign_ray.config.teacher import TeacherConfig, TeacherPromptConfig
from roboalign_ray.judge.rubric import DIMENSIONS, Dimension, check_scores, names
from roboalign_ray.judge.teacher.parsing import END_OF_THINKING, RATIONALE, THINK

_OPENING = (
    "The video was made by a model that predicts what a robot's camera sees. Judge how well it shows the robot "
    "carrying out the instruction. Look for things that jump, freeze, vanish, appear or pass through each other."
)
_CLOSING = "Scores between the levels are allowed. Be strict, and judge each dimension by itself."


def worded(prompt: TeacherPromptConfig) -> TeacherPromptConfig:
    """The prompt's settings with every sentence written out."""
    texts = {
        "opening": _OPENING if prompt.opening is None else prompt.opening,
        "closing": _CLOSING if prompt.closing is None else prompt.closing,
    }
    return prompt.model_copy(update=texts)


def prompt_text(instruction: str, config: TeacherConfig) -> str:
    """The question about a video."""
    prompt = worded(config.prompt)
    parts = [str(prompt.opening)]
    if prompt.rubric != "none":
        parts.append("\n".join(_described(dimension, prompt.rubric == "levels") for dimension in DIMENSIONS))
    parts += [str(prompt.closing), f"Instruction: {instruction.strip()}"]
    if prompt.describe_answer:
        keys = ", ".join(f'"{name}"' for name in (*names(), RATIONALE))
        parts.append(
            f"Answer with one JSON object and nothing else. Its keys: {keys}. Scores are numbers in steps of "
            f"{config.score_step:g}; the rationale says in a sentence or two what decided."
        )
    return "\n\n".join(part for part in parts if part)


def _described(dimension: Dimension, levels: bool) -> str:
    head = f"{dimension.title} ({dimension.name}), 0 to {dimension.maximum}"
    if not levels:
        return head
    return "\n".join([f"{head}:", *(f"  {score}: {text}" for score, text in dimension.levels.items())])


def messages(instruction: str, config: TeacherConfig) -> list[dict[str, Any]]:
    """One user turn with the video and then the question, in the form that chat templates take."""
    content = [{"type": "video"}, {"type": "text", "text": prompt_text(instruction, config)}]
    return [{"role": "user", "content": content}]


def chatml(question: str, *, opens_thinking: bool = False) -> str:
    """One user turn with a video and a question, up to the beginning of the answer, in the format of Qwen's models.

    It equals the output of Qwen3-VL's chat template, without running a template from a model's folder.

    Args:
        question: the text; chat-format tokens in it are broken up, so that it cannot end its turn.
        opens_thinking: begin the answer with the <think> tag, as the templates of thinking models do.
    """
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    answer = f"{THINK}\n" if opens_thinking else ""
    plain = question.replace("<|", "< |")
    return f"<|im_start|>user\n{video}{plain}<|im_end|>\n<|im_start|>assistant\n{answer}"


CHATML_MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|video_pad|>", "<|vision_end|>")
_OPENS_THINKING = "assistant\\n<think>"  # as written in the source of a Jinja template


def template_opens_thinking(template: object) -> bool:
    """Whether a chat template, read as text, begins answers with the <think> tag."""
    return isinstance(template, str) and _OPENS_THINKING in template


def answer_schema(config: TeacherConfig) -> dict[str, Any]:
    """JSON schema of the answer: scores in the rubric's order, in steps of their dimension, then the rationale."""
    scores: dict[str, Any] = {
        dimension.name: {"enum": [_plain(step) for step in steps(dimension, config.score_step)]}
        for dimension in DIMENSIONS
    }
    text = {"type": "string", "maxLength": config.rationale_characters}
    return {
        "type": "object",
        "properties": {**scores, RATIONALE: text},
        "required": [*names(), RATIONALE],
        "additionalProperties": False,
    }


def answer_grammar(config: TeacherConfig) -> str:
    """The grammar in xgrammar's EBNF for the answers of `answer_schema`, with the spacing of `target_answer`.

    A schema does not define the spacing, and decoders differ in it. A model that is constrained to a spacing that it
    was not trained on scores worse.
    """
    lines = [r'char ::= [^\x00-\x1f"\\] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})']
    parts = ['("\\n\\n")?'] if config.reasoning else []
    for number, dimension in enumerate(DIMENSIONS):
        values = (f'"{_plain(step)}"' for step in steps(dimension, config.score_step))
        lines.append(f"score{number} ::= {' | '.join(values)}")
        parts += [json.dumps(f'{", " if number else "{"}"{dimension.name}": '), f"score{number}"]
    opening, closing = json.dumps(f', "{RATIONALE}": "'), json.dumps('"}')
    parts += [opening, f"char{{0,{config.rationale_characters}}}", closing]
    return "\n".join([f"root ::= {' '.join(parts)}", *lines])


def steps(dimension: Dimension, step: float) -> list[float]:
    """The allowed scores, from 0 to the maximum."""
    count = round(dimension.maximum / step)
    return [round(number * step, 6) for number in range(count + 1)]


def target_answer(scores: np.ndarray, config: TeacherConfig, rationale: str = "") -> str:
    """The target answer of a labelled video.

    Args:
        scores: [6], rubric points; rounded to the steps.
        rationale: the reason; "" uses the rubric's text for the dimension with the largest loss.

    Raises:
        UserError: a score is out of range.
    """
    points = np.round(check_scores(scores, "label").astype(float) / config.score_step) * config.score_step
    values: Mapping[str, Any] = {
        name: _plain(round(float(value), 6)) for name, value in zip(names(), points, strict=True)
    }
    text = json.dumps({**values, RATIONALE: rationale or _reason(points)}, ensure_ascii=False)
    return f"{_reasoning(points)}\n{END_OF_THINKING}\n\n{text}" if config.reasoning else text


def opened(answer: str, prompt: str) -> str:
    """The answer as the continuation of a prompt, without the <think> tag if the model's template opens it."""
    if END_OF_THINKING not in answer or prompt.rstrip().endswith(THINK):
        return answer
    return f"{THINK}\n{answer}"


def _reasoning(points: np.ndarray) -> str:
    """The rubric's text for each score, in order."""
    pairs = zip(DIMENSIONS, points, strict=True)
    return "\n".join(f"{dimension.title}: {_level(dimension, value)}" for dimension, value in pairs)


def _reason(points: np.ndarray) -> str:
    """The rubric's text for the dimension that lost the largest share; for the first one if nothing is lost."""
    lost = [1 - value / dimension.maximum for dimension, value in zip(DIMENSIONS, points, strict=True)]
    worst = int(np.argmax(lost))
    return _level(DIMENSIONS[worst], points[worst])


def _level(dimension: Dimension, value: float) -> str:
    return dimension.levels[min(dimension.levels, key=lambda level: abs(level - value))]


def _plain(value: float) -> int | float:
    """The number as text, 1 rather than 1.0: this takes fewer tokens and equals the text of JSON schema tools."""
    return int(value) if float(value).is_integer() else value
