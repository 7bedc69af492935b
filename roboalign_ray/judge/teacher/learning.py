"""Maximum likelihood on annotated scores: batches of judged pairs, and the loss on the answer's tokens only.

    [pad … prompt with video][answer <|im_end|>][pad …]
                              └── loss ──────┘
                               └ before each number: six scores by a linear head, if configured

RoboAlign-R1 (arXiv 2605.03821) trains its teacher this way; the answer's wording, the weight of its numbers and the
head are [ours].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.protocol import JudgeRequest
from roboalign_ray.judge.rubric import DIMENSIONS, normalise
from roboalign_ray.judge.teacher.prompt import opened, target_answer
from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, import_peft

_SCORE = re.compile(r'": ([0-9.]+)')
_RATIONALE_AT = ("teacher", "rationale")  # provenance section of a teacher's label


@dataclass(frozen=True)
class AnswerBatch:
    """A batch of judged pairs as tensors.

    Attributes:
        inputs: inputs of the model's forward; sequences [B, P + A], prompts padded on the left, answers on the right.
        answers: int64 [B, A].
        weights: float32 [B, A]; 0 on padding.
        scored: bool [B, A], tokens of the six numbers.
        shares: float32 [B, 6], the labels as shares of the maxima.
    """

    inputs: dict[str, Tensor]
    answers: Tensor
    weights: Tensor
    scored: Tensor
    shares: Tensor

    @property
    def begun(self) -> Tensor:
        """Bool [B, A], the first token of every number."""
        return self.scored & ~F.pad(self.scored, (1, 0))[:, :-1]

    def to(self, device: torch.device | str) -> AnswerBatch:
        """The batch on a device."""
        rest = (self.answers, self.weights, self.scored, self.shares)
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return AnswerBatch(inputs, *(tensor.to(device) for tensor in rest))


class ScoreReader(nn.Module):
    """A VLM in training, with a linear head that reads scores from its last hidden states.

    Args:
        model: a model of the image-text-to-text family, possibly with an adapter.

    Attributes:
        model: the model to keep.
        head: used only in training.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        words = model.get_input_embeddings().weight
        self.head = nn.Linear(words.shape[1], len(DIMENSIONS), dtype=words.dtype)

    def forward(self, *, logits_to_keep: int, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits [B, K, V] and shares of the maxima [B, K, 6] at the last K positions."""
        seen = self.model(**inputs, logits_to_keep=logits_to_keep, output_hidden_states=True)
        states = seen.hidden_states[-1][:, -logits_to_keep:]
        return seen.logits, self.head(states.to(self.head.weight.dtype))


def answer_batch(pairs: Sequence[JudgedPair], prompter: VideoPrompter, config: TeacherConfig) -> AnswerBatch:
    """A batch of prompts, exactly as in inference, each followed by the answer for its label."""
    shown = [prompter.shown(JudgeRequest(pair.frames, pair.fps, pair.instruction)) for pair in pairs]
    texts = [prompter.text(pair.instruction) for pair in pairs]
    inputs = dict(prompter.inputs(texts, shown))
    encoded = [
        _encoded(opened(target_answer(pair.scores, config, _rationale(pair)), text), prompter, config)
        for pair, text in zip(pairs, texts, strict=True)
    ]
    length = max(len(ids) for ids, _ in encoded)
    pad = prompter.tokenizer.pad_token_id
    answers = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in encoded])
    there = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in encoded])
    scored = torch.tensor([flags + [False] * (length - len(flags)) for _, flags in encoded])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answers], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], there], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(answers)], dim=1
        )
    weights = there.float() * torch.where(scored, config.training.score_weight, 1.0)
    shares = torch.stack([torch.from_numpy(normalise(pair.scores)) for pair in pairs]).float()
    return AnswerBatch(inputs, answers, weights, scored, shares)


def reading_loss(model: Any, batch: AnswerBatch, delta: float) -> tuple[Tensor, Tensor, dict[str, float]]:
    """`answer_loss` of a `ScoreReader`'s model, and the Huber loss of its head's scores before every number.

    Returns:
        the sum of the answers, the sum over pairs of their mean Huber losses, and the metrics of `answer_loss` with
        "read_mae", a share of the maxima.
    """
    length = batch.answers.shape[1]
    logits, read = model(**batch.inputs, use_cache=False, logits_to_keep=length + 1)
    loss, metrics = _answer_loss(logits, batch)
    rows, places = batch.begun.nonzero(as_tuple=True)
    shares, wanted = read[rows, places].float(), batch.shares[rows]
    mean = F.huber_loss(shares, wanted, delta=delta)
    metrics["read_mae"] = float((shares.detach() - wanted).abs().mean())
    return loss, mean * len(batch.shares), metrics


def answer_loss(model: Any, batch: AnswerBatch) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the answers' negative log-likelihoods, not divided by the sum of the weights.

    Returns:
        the sum, and "score_nll" and "score_accuracy": means over the tokens of the six numbers.
    """
    length = batch.answers.shape[1]
    return _answer_loss(model(**batch.inputs, use_cache=False, logits_to_keep=length + 1).logits, batch)


def _answer_loss(logits: Tensor, batch: AnswerBatch) -> tuple[Tensor, dict[str, float]]:
    length = batch.answers.shape[1]
    predicted = logits[:, -(length + 1) : -1].float()
    nll = F.cross_entropy(predicted.transpose(1, 2), batch.answers, reduction="none")
    with torch.no_grad():
        right = predicted.argmax(-1) == batch.answers
        metrics = {
            "score_nll": float(nll[batch.scored].mean()),
            "score_accuracy": float(right[batch.scored].float().mean()),
        }
    return (nll * batch.weights).sum(), metrics


def lora_model(model: Any, config: TeacherConfig) -> Any:
    """The model with an untrained adapter in its language part; all other weights are frozen.

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
    """Token ids of an answer with the end of the turn, and which of them belong to the six numbers."""
    encoded = prompter.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    spans = [match.span(1) for match in _SCORE.finditer(answer)]
    scored = [
        any(first < end and last > begin for begin, end in spans) for first, last in encoded["offset_mapping"]
    ]
    return [*encoded["input_ids"], prompter.tokenizer.eos_token_id], [*scored, False]


def _rationale(pair: JudgedPair) -> str:
    """The teacher's rationale if the label has one; "" means that the rubric's text is used."""
    section, key = _RATIONALE_AT
    provenance = pair.provenance.get(section)
    return str(provenance.get(key) or "") if isinstance(provenance, dict) else ""
