"""Constrained decoding with transformers: xgrammar restricts an answer to its grammar, as in vLLM."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import Tensor

from roboalign_ray.foundation.failures import UserError


def available() -> bool:
    """Whether xgrammar is installed."""
    return importlib.util.find_spec("xgrammar") is not None


class AnswerGrammar:
    """A compiled grammar for one tokenizer. It makes a new logits processor for every call of `generate`.

    Args:
        grammar: in xgrammar's EBNF.
        tokenizer: of the model.
        vocabulary: width of the model's logits.
        starts_after: token after which the answer begins; None if it begins at once.

    Raises:
        UserError: xgrammar is not installed.
    """

    def __init__(self, grammar: str, tokenizer: Any, vocabulary: int, starts_after: int | None) -> None:
        if not available():
            raise UserError(
                "constrained answers need xgrammar",
                where="teacher.constrained",
                remedy="install the 'teacher' extra, or set it to false",
            )
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=[tokenizer.eos_token_id]
        )
        self._grammar = xgrammar.GrammarCompiler(info).compile_grammar(grammar)
        self._vocabulary, self._starts_after = vocabulary, starts_after

    def processor(self) -> Any:
        """A logits processor for one call of `generate`, with any number of rows."""
        return _GrammarProcessor(self._grammar, self._vocabulary, self._starts_after)


class _GrammarProcessor:
    """Constrains each row: any token until its reasoning ends, then only tokens that the grammar allows."""

    def __init__(self, grammar: Any, vocabulary: int, starts_after: int | None) -> None:
        self._grammar, self._vocabulary, self._starts_after = grammar, vocabulary, starts_after
        self._matchers: list[Any] = []
        self._begun: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set forbidden tokens in the logits [R, V] to minus infinity; ids are [R, L]."""
        import xgrammar

        if not self._matchers:
            self._matchers = [xgrammar.GrammarMatcher(self._grammar) for _ in input_ids]
            self._begun = [self._starts_after is None] * len(input_ids)
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._advance(row, token)
        mask = xgrammar.allocate_token_bitmask(len(input_ids), self._vocabulary)
        held = [
            r for r, matcher in enumerate(self._matchers) if self._begun[r] and not matcher.is_terminated()
        ]
        for row in held:
            self._matchers[row].fill_next_token_bitmask(mask, row)
        if not held:
            return scores
        scores = scores.clone()
        xgrammar.apply_token_bitmask_inplace(scores, mask.to(scores.device), indices=held)
        return scores

    def _advance(self, row: int, token: int) -> None:
        matcher = self._matchers[row]
        if not self._begun[row]:
            self._begun[row] = token == self._starts_after
        elif not matcher.is_terminated():
            matcher.accept_token(token)
