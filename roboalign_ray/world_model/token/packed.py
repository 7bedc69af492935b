"""Inference weights and the forward pass of the rollout engine.

The weights of a Hugging Face LLaMA, packed for decoding: one matrix for query, key and value rows, one for gate and up
rows, norms and the scale of scores folded in, and only the head rows of dynamics codes. Rotary pairs are stored next to
each other instead of half a head apart (for queries and keys alike, so their products are unchanged); rotation is then
one complex multiplication.

On a CPU in float32, a pass is one call of the C library in `native/`. Elsewhere, or without a compiler, a pass is about
twenty PyTorch kernels per layer, with shapes that stay the same from step to step except the number of cached tokens.

A row's bits must not depend on the rest of the batch, or a seed would not determine its tokens. PyTorch's CPU kernels
violate this in two ways. Matrix kernels choose their order of summation by the number of rows, but only below eight:
buffers are padded to eight rows. And vectorised exp, log and similar functions differ in the last bit from the scalar
ones at a tensor's tail: across rows only correctly rounded operations are used (+, *, /, sqrt).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.attention import attend
from roboalign_ray.world_model.token.cache import KeyValueCache
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.matrices import PackedMatrix
from roboalign_ray.world_model.token.native.build import native_library
from roboalign_ray.world_model.token.native.decoder import NativeDecoder, Panels

MINIMUM_ROWS = 8


@dataclass(frozen=True)
class PackedLayer:
    """Weights of one layer, in the format of the device's kernels."""

    qkv: Any
    out: Any
    gate_up: Any
    down: Any


class Workspace:
    """Buffers and views for one forward pass of `rows` sequences by `chunk` tokens. Padding rows stay zero."""

    def __init__(self, packed: PackedTransformer, rows: int, chunk: int) -> None:
        self.rows, self.chunk, self.used = rows, chunk, rows * chunk
        if packed.native is not None:
            return  # its pass has its own buffers
        total = max(self.used, MINIMUM_ROWS)
        heads, kv_heads, head_dim = packed.heads, packed.kv_heads, packed.head_dim

        def zeros(*shape: int, dtype: torch.dtype = packed.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=packed.device)

        self.x = zeros(total, packed.hidden, dtype=torch.float32)
        self.norm = zeros(total, 1, dtype=torch.float32)
        self.normed = zeros(total, packed.hidden)
        self.qkv = zeros(total, (heads + 2 * kv_heads) * head_dim)
        split = self.qkv[: self.used].view(rows, chunk, heads + 2 * kv_heads, head_dim)
        self.rotated = split[:, :, : heads + kv_heads].unflatten(-1, (-1, 2))
        if packed.dtype == torch.float32:
            self.rotated = torch.view_as_complex(self.rotated)
        self.queries = split[:, :, :heads]
        self.keys_values = split[:, :, heads:].unflatten(2, (2, kv_heads)).permute(2, 0, 3, 1, 4)
        self.attended = zeros(total, heads * head_dim)
        # The last layer continues with each row's last token only.
        self.last = zeros(max(rows, MINIMUM_ROWS), packed.hidden, dtype=torch.float32)
        self.last_attended = zeros(max(rows, MINIMUM_ROWS), heads * head_dim)


class PackedTransformer:
    """A LLaMA ready for decoding.

    Args:
        state_dict: Hugging Face names to tensors or NumPy arrays.
        config: the model's LlamaConfig.
        layout: its dynamics range determines the rows of the head.
        dtype: type of weights and cache; float32 or bfloat16. The residual stream is always float32.
        device: where to run.

    Raises:
        UserError: a weight is missing, or its shape does not fit the config.
    """

    def __init__(
        self,
        state_dict: Mapping[str, Tensor],
        config,
        layout: SequenceLayout,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.hidden, self.ffn = config.hidden_size, config.intermediate_size
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = self.hidden // self.heads
        self.codes, self.dtype, self.device = layout.codes, dtype, torch.device(device)
        self.theta = float(config.rope_parameters["rope_theta"])
        self._norm_floor = self.hidden * config.rms_norm_eps
        self._library = native_library(dtype, self.device, self.head_dim)
        weights = _Weights(state_dict, self.device)
        embedding = weights.take("model.embed_tokens.weight", (layout.vocabulary, self.hidden))
        self.embedding = embedding.clone()  # the trainer may change its own
        self.layers = [self._pack_layer(weights, i) for i in range(config.num_hidden_layers)]
        first, last = layout.dynamics_range
        head = weights.take("lm_head.weight", (layout.vocabulary, self.hidden))[first:last]
        self.head = self._fold(head, weights.take("model.norm.weight", (self.hidden,)))
        self._phases = self._make_phases(layout.length(16))
        self.native: NativeDecoder | None = None
        if self._library is not None:
            layers: Any = self.layers  # of panels, if there is a library
            self.native = NativeDecoder(
                self._library, self.embedding, layers, self.head, self.heads, self.kv_heads, self._norm_floor
            )

    def _pack_layer(self, weights: _Weights, index: int) -> PackedLayer:
        at, width, narrow = f"model.layers.{index}.", self.hidden, self.kv_heads * self.head_dim
        q = self._pair(weights.take(f"{at}self_attn.q_proj.weight", (width, width))) / math.sqrt(
            self.head_dim
        )
        k = self._pair(weights.take(f"{at}self_attn.k_proj.weight", (narrow, width)))
        v = weights.take(f"{at}self_attn.v_proj.weight", (narrow, width))
        gate = weights.take(f"{at}mlp.gate_proj.weight", (self.ffn, width))
        up = weights.take(f"{at}mlp.up_proj.weight", (self.ffn, width))
        down = weights.take(f"{at}mlp.down_proj.weight", (width, self.ffn))
        before_attention = weights.take(f"{at}input_layernorm.weight", (width,))
        before_mlp = weights.take(f"{at}post_attention_layernorm.weight", (width,))
        return PackedLayer(
            qkv=self._fold(torch.cat([q, k, v]), before_attention),
            out=self._pack(weights.take(f"{at}self_attn.o_proj.weight", (width, width))),
            gate_up=self._fold(torch.cat([gate, up]), before_mlp, paired=True),
            down=self._pack(down),
        )

    def _fold(self, matrix_OH: Tensor, norm_H: Tensor, paired: bool = False) -> Any:
        """The matrix after an RMS norm, multiplied by the norm's weight and the square root of the width."""
        return self._pack(matrix_OH * (norm_H * math.sqrt(self.hidden)), paired)

    def _pack(self, matrix_OI: Tensor, paired: bool = False) -> Any:
        if self._library is not None:
            return Panels(matrix_OI, self._library.panel_width(), paired)
        return PackedMatrix(matrix_OI, self.dtype)

    def _pair(self, matrix_OH: Tensor) -> Tensor:
        """Rows of each head reordered from (real half, imaginary half) to (real, imaginary) pairs."""
        return matrix_OH.unflatten(0, (-1, 2, self.head_dim // 2)).transpose(1, 2).reshape(matrix_OH.shape)

    def _make_phases(self, length: int) -> Tensor:
        # The same float32 arithmetic as the training model's rotary embedding: positions * inverse frequencies.
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / (self.theta**exponents)
        angles = torch.outer(torch.arange(length).float(), frequencies)
        return torch.complex(angles.cos(), angles.sin()).to(self.device)

    def phases(self, length: int) -> Tensor:
        """Rotary phases complex64 [at least `length`, d/2] by position; the table is extended as needed."""
        if length > len(self._phases):
            self._phases = self._make_phases(2 * length)
        return self._phases

    def empty_cache(self, rows: int, capacity: int) -> KeyValueCache:
        """An empty cache for this model's shapes, without a shared prefix."""
        return KeyValueCache.empty(
            len(self.layers),
            rows,
            self.kv_heads,
            capacity,
            self.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(self, ids: Tensor, cache: KeyValueCache, workspace: Workspace) -> Tensor:
        """Process a chunk of tokens in every row, and write its keys and values.

        Args:
            ids: int64 [rows, chunk].
            cache: holds the previous tokens; its `length` grows by `chunk`.
            workspace: buffers of that shape.

        Returns:
            Logits float32 [rows, codes] after each row's last token.
        """
        w, chunk, start, position = workspace, workspace.chunk, cache.length, cache.position
        phases = self.phases(position + chunk)[position : position + chunk]
        if self.native is not None:
            return self.native.forward(ids, cache, phases)
        phases = phases[:, None]
        torch.index_select(self.embedding, 0, ids.reshape(-1), out=w.x[: w.used])
        x, queries, buffer = w.x, w.queries, w.attended
        for index, layer in enumerate(self.layers):
            w.qkv.copy_(layer.qkv.product(self._normalise(x, w)))
            self._rotate(w.rotated, phases)
            cache.slots(index, start, chunk).copy_(w.keys_values)
            if layer is self.layers[-1] and chunk > 1:
                # Only keys and values of the other tokens are used later.
                w.last[: w.rows] = x[: w.used].view(w.rows, chunk, -1)[:, -1]
                x, queries, buffer = w.last, queries[:, -1:], w.last_attended
            attended = attend(queries, cache, index, start + chunk).flatten(0, 1).flatten(1)
            x = layer.out.add_product(x, self._padded(attended, buffer))
            gate, up = layer.gate_up.product(self._normalise(x, w)).chunk(2, dim=-1)
            x = layer.down.add_product(x, torch.nn.functional.silu(gate).mul_(up))
        cache.length += chunk
        return self.head.product(self._normalise(x, w))[: w.rows].float()

    def _normalise(self, x: Tensor, workspace: Workspace) -> Tensor:
        """x / sqrt(sum(x²) + H·eps): RMS norm without the factor that `_fold` put into the next matrix."""
        norm, out = workspace.norm[: len(x)], workspace.normed[: len(x)]
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=norm)
        norm.mul_(norm).add_(self._norm_floor).sqrt_()
        return torch.div(x, norm, out=out)

    def _rotate(self, rotated: Tensor, phases: Tensor) -> None:
        """Apply rotary phases in place; bfloat16 has no complex type and is converted to float32."""
        if rotated.is_complex():
            rotated.mul_(phases)
        else:
            rotated.copy_(torch.view_as_real(torch.view_as_complex(rotated.float()) * phases))

    @staticmethod
    def _padded(rows: Tensor, buffer: Tensor) -> Tensor:
        if len(rows) == len(buffer):
            return rows
        buffer[: len(rows)] = rows
        return buffer


class _Weights:
    """Reads weights from a state dict by name, and checks presence and shape."""

    def __init__(self, state_dict: Mapping[str, Tensor], device: torch.device) -> None:
        self._state_dict, self._device = state_dict, device

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The weight as float32 on the device; it may share memory with the state dict."""
        if name not in self._state_dict:
            raise UserError(f"holds no '{name}'", where="world model weights")
        weight: Any = self._state_dict[name]
        if isinstance(weight, np.ndarray) and not weight.flags.writeable:
            weight = weight.copy()  # a view into a received bucket: PyTorch has no read-only tensors
        weight = torch.as_tensor(weight).detach()
        if tuple(weight.shape) != shape:
            raise UserError(
                f"'{name}' has shape {tuple(weight.shape)}, not {shape}", where="world model weights"
            )
        return weight.to(self._device, torch.float32)
