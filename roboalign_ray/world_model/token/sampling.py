"""Sampling within a slot's vocabulary, reproducible per sample.

Every sample has a counter-based generator (Philox, keyed by its seed). Its n-th token uses the n-th uniform number, by
inversion of the cumulative distribution, so a seed gives the same tokens in any batch. Log-probabilities are those of
the model itself, at temperature 1 over the slot's whole vocabulary, for any sampling settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.config import SamplingConfig
from roboalign_ray.world_model.seeds import generator

# Keeps u * total below total after rounding, so that the search always ends on a token of positive probability.
_BELOW_ONE = np.float32(1.0 - 2.0**-22)


def uniforms(seeds: list[int], count: int) -> np.ndarray:
    """Float32 [len(seeds), count] in [0, 1): row i depends only on seeds[i], and a longer row only appends.

    Raises:
        UserError: a seed is outside [0, 2**128).
    """
    rows = np.empty((len(seeds), count), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        generator(seed).random(out=row, dtype=np.float32)
    return np.minimum(rows, _BELOW_ONE)


class Sampler:
    """Draws one token per row.

    Args:
        config: temperature (0 takes the most likely token) and top_k (0, or at least the vocabulary, keeps all).
    """

    def __init__(self, config: SamplingConfig) -> None:
        self._temperature, self._top_k = config.temperature, config.top_k

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row.

        Args:
            logits: float32 [B, V] over the slot's vocabulary.
            uniform: float32 [B, 1], see `uniforms`.

        Returns:
            (tokens int64 [B, 1], log-probabilities float32 [B, 1] at temperature 1 over all V).
        """
        with _one_thread():
            return self._draw(logits, uniform)

    def _draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        if self._temperature == 0:
            tokens = logits.argmax(-1, keepdim=True)
        elif 0 < self._top_k < logits.shape[-1]:
            values, ids = logits.topk(self._top_k, dim=-1)
            tokens = ids.gather(-1, _invert((values / self._temperature).softmax(-1), uniform))
        elif self._temperature != 1:
            tokens = _invert((logits / self._temperature).softmax(-1), uniform)
        else:
            probabilities = logits.softmax(-1)
            tokens = _invert(probabilities, uniform)
            # In double precision, so that vectorised and scalar logarithms round to the same float32.
            return tokens, probabilities.gather(-1, tokens).double().log_().float()
        return tokens, logits.log_softmax(-1).gather(-1, tokens)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Disable PyTorch's OpenMP threads in the block, on a CPU.

    A draw takes a few dozen microseconds. Afterwards, these threads would spin on the cores that the forward pass's own
    threads need; and if another process preempts one of them, it delays all others.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds the uniform: int64 [B, 1]."""
    cumulative = probabilities.cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
