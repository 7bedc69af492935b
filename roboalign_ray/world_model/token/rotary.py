"""Rotary frequencies that stay in float32 when the model's weights are cast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


class ExactRotaryEmbedding(LlamaRotaryEmbedding):
    """LLaMA's rotary embedding. `model.to(dtype)`, `.bfloat16()` and `.half()` move its buffers without rounding them.

    A frequency that is rounded to bfloat16 is wrong by up to 0.4 %, which is a phase of several radians at position
    1,000; and two copies of a model agree only if both have rounded, or neither.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            cast = self.get_buffer(name)
            if cast.dtype != torch.float32:
                setattr(self, name, buffer.to(cast.device))
        return self


def keep_rotary_exact(model) -> None:
    """Give a float32 `LlamaForCausalLM` and all its copies a rotary embedding that casts do not change."""
    model.model.rotary_emb = ExactRotaryEmbedding(config=model.config).to(model.device)
