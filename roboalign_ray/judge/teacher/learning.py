"""Maximum likelihood on annotated scores: judged pairs to tensors, and the loss on the answer's tokens alone.

    [pad … prompt with video][answer <|im_end|>][pad …]
                              └── loss ──────┘

RoboAlign-R1 (arXiv 2605.03821) trains its teacher so; the answer's wording and the weight of its numbers are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.judge.pairs import JudgedPair
from roboalign_ray.judge.teacher.prompt import opened, target_answer
from roboalign_ray.judge.teacher.protocol import JudgeRequest
from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, import_peft

_SCORE = re.compile(r'": ([0-9.]+)')
_RATIONALE_AT = ("teacher", "rationale")  # where a teacher's labels keep their reason


@dataclass(frozen=True)
class AnswerBatch:
    """Tensors of a few judged pairs.

    Attributes:
        inputs: what the model's forward takes; sequences [B, P + A], prompts padded on the left, answers on the right.
        answers: int64 [B, A].
        weights: float32 [B, A]; 0 on padding.
        scored: bool [B, A], tokens of the six numbers.
    """

    inputs: dict[str, Tensor]
    answers: Tensor
    weights: Tensor
    scored: Tensor

    def to(self, device: torch.device | str) -> AnswerBatch:
        """All of it on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return AnswerBatch(inputs, self.answers.to(device), self.weights.to(device), self.scored.to(device))


def answer_batch(pairs: Sequence[JudgedPair], prompter: VideoPrompter, config: TeacherConfig) -> AnswerBatch:
    """Prompts exactly as they are asked, each followed by the answer that its label deserves."""
    shown = [prompter.shown(JudgeRequest(pair.frames, pair.fps, pair.instruction)) for pair in pairs]
    texts = [prompter.text(pair.instruction) for pair in pairs]
    inputs = dict(prompter.inputs(texts, shown))
    told = [
        _encoded(opened(target_answer(pair.scores, config, _rationale(pair)), text), prompter, config)
        for pair, text in zip(pairs, texts, strict=True)
    ]
    length = max(len(ids) for ids, _ in told)
    pad = prompter.tokenizer.pad_token_id
    answers = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in told])
    there = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in told])
    scored = torch.tensor([flags + [False] * (length - len(flags)) for _, flags in told])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answers], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], there], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(answers)], dim=1
        )
    weights = there.float() * torch.where(scored, config.training.score_weight, 1.0)
    return AnswerBatch(inputs, answers, weights, scored)


def answer_loss(model: Any, batch: AnswerBatch) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the answers' negative log-likelihoods, not yet divided by the weights' sum.

    Returns:
        the sum, and "score_nll" and "score_accuracy": means over the tokens of the six numbers.
    """
    length = batch.answers.shape[1]
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=length + 1).logits
    predicted = logits[:, -(length + 1) : -1].float()
    nll = F.cross_entropy(predicted.transpose(1, 2), batch.answers, reduction="none")
    with torch.no_grad():
        right = predicted.argmax(-1) == batch.answers
        told = {
            "score_nll": float(nll[batch.scored].mean()),
            "score_accuracy": float(right[batch.scored].float().mean()),
        }
    return (nll * batch.weights).sum(), told


def lora_model(model: Any, config: TeacherConfig) -> Any:
    """The model with an untrained adapter in its language part; all else is frozen.

    Raises:
        UserError: peft is not installed.
    """
    peft = import_peft()
    settings = config.training
    targets = "|".join(re.escape(name) for name in settings.lora_targets)
    shape = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=rf".*language_model\..*\.({targets})",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, shape)


def _encoded(answer: str, prompter: VideoPrompter, config: TeacherConfig) -> tuple[list[int], list[bool]]:
    """Token ids of an answer and the end of the turn, and which of them are of the six numbers."""
    told = prompter.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    spans = [match.span(1) for match in _SCORE.finditer(answer)]
    scored = [
        any(first < end and last > begin for begin, end in spans) for first, last in told["offset_mapping"]
    ]
    return [*told["input_ids"], prompter.tokenizer.eos_token_id], [*scored, False]


def _rationale(pair: JudgedPair) -> str:
    """A teacher's own rationale where a label has one; "" lets the rubric speak."""
    section, key = _RATIONALE_AT
    told = pair.provenance.get(section)
    return str(told.get(key) or "") if isinstance(told, dict) else ""
