"""Instructions to feature sequences: hashed word pieces by default, or a pretrained text model plugged in by name.

The default needs no vocabulary and no download. Words that say nothing of a task are left out ("please", "the"). A
word is the mean of the embeddings of its pieces, the word itself and its letter trigrams, each hashed to a bucket
(subword hashing as in Bojanowski et al., arXiv 1607.04606), so that "drawer" and "drawers" start close, a word never
seen still has a meaning, and a sentence is a handful of tokens. Typing errors are mended before (`spelling`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.model_folders import check_model_folder, needs_code, wants_code
from roboalign_ray.judge.student.spelling import WORD, mended

HASHED = "hashed"
# What people put around an instruction. Words that can change a task stay: "not", "never", "right", "next", and "can",
# which may be one of cola.
_EMPTY_WORDS = frozenset(
    """
    a an the please pls kindly now just simply hey hi hello ok okay well so then robot could would will you
    your i we us me my d m s ll re want need like wish thanks thank must should may might ask asked shall
    try immediately quickly today again carefully gently slowly sir dear um uh er hm hmm this that there here
    """.split()  # noqa: SIM905 - a list of words is easier to read as a text
)
_OPENERS = ("to", "and")  # what is left of "I want you to …"; not read at the beginning alone
_PIECES = 8  # of a word: itself and its first trigrams
_EMPTY = 0  # the bucket of padding


@dataclass(frozen=True)
class TextTokens:
    """Tokenized instructions.

    Attributes:
        ids: int64 [B, L, pieces] for hashed text, [B, L] for a pretrained model's tokenizer.
        mask: bool [B, L], which positions are there; every row has at least one.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> TextTokens:
        """On another device."""
        return TextTokens(self.ids.to(device), self.mask.to(device))


def word_pieces(sentence: str, known: frozenset[str] = frozenset()) -> list[list[str]]:
    """Pieces of every word: "<word>" and its trigrams; case, punctuation and empty words are dropped, unless there are
    no others.

    Args:
        known: words that are looked for behind typing errors; none: words are taken as they stand.
    """
    said = WORD.findall(sentence.lower())
    if known:
        said = [word if word in _EMPTY_WORDS else mended(word, known) for word in said]
    kept = [word for word in said if word not in _EMPTY_WORDS]
    if len(kept) > 1 and kept[0] in _OPENERS:
        kept = kept[1:]
    words = (f"<{word}>" for word in kept or said)
    return [[word, *(word[i : i + 3] for i in range(len(word) - 2))][:_PIECES] for word in words]


@lru_cache(maxsize=4096)
def _hashed(sentence: str, buckets: int, words: int, known: frozenset[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(1 + zlib.crc32(piece.encode()) % (buckets - 1) for piece in pieces)
        for pieces in word_pieces(sentence, known)[:words]
    )


class HashedText(nn.Module):
    """Hashed word pieces through a small pre-norm transformer.

    Output: features [B, L, text_hidden].

    Attributes:
        known: words that it has been trained on, in small letters.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.known: frozenset[str] = frozenset()
        self.buckets, self.words, self.width = config.text_buckets, config.text_words, config.text_hidden
        self.pieces = nn.Embedding(self.buckets, self.width, padding_idx=_EMPTY)
        self.places = nn.Parameter(torch.randn(self.words, self.width) * 0.02)
        nn.init.normal_(self.pieces.weight, std=0.02)
        with torch.no_grad():
            self.pieces.weight[_EMPTY] = 0
        layer = nn.TransformerEncoderLayer(
            self.width,
            config.text_heads,
            config.text_ffn,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, config.text_layers, norm=nn.LayerNorm(self.width), enable_nested_tensor=False
        )

    def tokenize(self, instructions: Sequence[str]) -> TextTokens:
        """Ids [B, L, pieces] and mask [B, L]; an instruction without words becomes one empty word."""
        sentences = [
            _hashed(text, self.buckets, self.words, self.known) or ((_EMPTY,),) for text in instructions
        ]
        length = max(len(sentence) for sentence in sentences)
        ids = torch.zeros(len(sentences), length, _PIECES, dtype=torch.int64)
        mask = torch.zeros(len(sentences), length, dtype=torch.bool)
        for row, sentence in enumerate(sentences):
            mask[row, : len(sentence)] = True
            for place, pieces in enumerate(sentence):
                ids[row, place, : len(pieces)] = torch.tensor(pieces)
        return TextTokens(ids, mask)

    def forward(self, tokens: TextTokens) -> Tensor:
        """Features [B, L, text_hidden]."""
        there = (tokens.ids != _EMPTY).sum(-1, keepdim=True).clamp_min(1)
        words_BLW = self.pieces(tokens.ids).sum(-2) / there
        return self.layers(words_BLW + self.places[: words_BLW.shape[1]], src_key_padding_mask=~tokens.mask)


class PretrainedText(nn.Module):
    """Any transformers text encoder; features are its last hidden states.

    Args:
        name: model name, or a folder; a folder that `save_extra` wrote gives shape and tokenizer without weights.
        words: most tokens read.
        frozen: keep it as it is.
    """

    def __init__(self, name: str, words: int, frozen: bool, *, weights: bool = True) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        self.words, self.frozen = words, frozen
        self.model, self.width = load_encoder(name, weights=weights, where="judge.student.text_encoder")
        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if frozen:
            self.model.requires_grad_(False)

    def tokenize(self, instructions: Sequence[str]) -> TextTokens:
        """Ids and mask [B, L]."""
        encoded = self.tokenizer(
            list(instructions), padding=True, truncation=True, max_length=self.words, return_tensors="pt"
        )
        return TextTokens(encoded["input_ids"], encoded["attention_mask"].bool())

    def forward(self, tokens: TextTokens) -> Tensor:
        """Features [B, L, width]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model(
                input_ids=tokens.ids, attention_mask=tokens.mask.long()
            ).last_hidden_state.float()

    def train(self, mode: bool = True) -> PretrainedText:
        """A frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def save_extra(self, folder: Path) -> None:
        """Shape and tokenizer, so that loading needs neither name nor network."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_encoder(name: str, *, weights: bool, where: str) -> tuple[Any, int]:
    """A transformers encoder in float32 and its width; a model of two towers gives the one that `where` asks for.

    Raises:
        UserError: there is none of that name, here or where transformers looks for it.
    """
    from transformers import AutoConfig, AutoModel

    check_model_folder(name, where)
    try:
        if weights:
            model = AutoModel.from_pretrained(
                name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if wants_code(error):
            raise needs_code(name, where) from error
        raise UserError(
            f"no encoder '{name}' ({first_line(error)})",
            where=where,
            remedy="give a transformers model name or folder, or leave the built-in one",
        ) from error
    tower = getattr(model, "vision_model" if where.endswith("vision_encoder") else "text_model", model)
    return tower, int(tower.config.hidden_size)
