"""Weights in the format of decode.c, and its calls."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.cache import KeyValueCache
from roboalign_ray.world_model.token.native.thread_choice import ThreadChoice

# A forked child has no threads of its parent's pool, and would wait for them forever.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


class Panels:
    """One weight matrix in decode.c's format: panels of outputs, each [in, width].

    Args:
        matrix_OI: float32 [out, in].
        width: number of outputs per panel, the library's `panel_width()`.
        paired: whether the matrix is a gate's and an up projection's, stacked: each panel has half its outputs from
            either.
    """

    def __init__(self, matrix_OI: Tensor, width: int, paired: bool = False) -> None:
        self.shape = tuple(matrix_OI.shape)
        parts = matrix_OI.chunk(2) if paired else (matrix_OI,)
        block = width // len(parts)
        blocks = [pad(p, (0, 0, 0, -len(p) % block)).unflatten(0, (-1, block)) for p in parts]
        self.data = torch.cat(blocks, dim=1).transpose(1, 2).contiguous()  # [panels, in, width]


class LayerPanels(Protocol):
    """A layer's matrices, see `packed.PackedLayer`."""

    qkv: Panels
    out: Panels
    gate_up: Panels
    down: Panels


class _Structure(ctypes.Structure):
    """A C struct of 64-bit fields."""

    def fill(self, **values: float | None) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def _fields(integers: str = "", doubles: str = "", pointers: str = "") -> list[tuple[str, type]]:
    kinds = ((integers, ctypes.c_int64), (doubles, ctypes.c_double), (pointers, ctypes.c_void_p))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class _Layer(_Structure):
    _fields_ = _fields(pointers="qkv out gate_up down")


class _Model(_Structure):
    _fields_ = _fields(
        "layers hidden ffn heads kv_heads head_dim vocabulary codes", "floor", "embedding head layer"
    )


class _Pass(_Structure):
    _fields_ = [
        *_fields("rows chunk threads samples prefix length", pointers="ids phases shared"),
        *_fields("shared_layer shared_pair shared_group shared_head", pointers="own"),
        *_fields("own_layer own_pair own_row own_head", pointers="logits"),
    ]


class NativeDecoder:
    """Forward passes of one set of weights; may be used from several threads at a time, each with its own cache.

    Args:
        library: from `build.native_library`.
        embedding: float32 [vocabulary, H].
        layers, head: packed matrices; this object keeps them alive.
        heads, kv_heads: number of attention heads, and of key-value heads.
        norm_floor: H times the RMS norm's epsilon.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        embedding: Tensor,
        layers: Sequence[LayerPanels],
        head: Panels,
        heads: int,
        kv_heads: int,
        norm_floor: float,
    ) -> None:
        embedding = embedding.contiguous()
        self._library, self._kept = library, (embedding, layers, head)
        vocabulary, hidden = embedding.shape
        self._layers = (_Layer * len(layers))()
        for struct, layer in zip(self._layers, layers, strict=True):
            struct.fill(
                qkv=layer.qkv.data.data_ptr(),
                out=layer.out.data.data_ptr(),
                gate_up=layer.gate_up.data.data_ptr(),
                down=layer.down.data.data_ptr(),
            )
        self._codes, self._head_dim = head.shape[0], hidden // heads
        self._model = _Model(floor=norm_floor)
        self._model.fill(
            layers=len(layers), hidden=hidden, ffn=layers[0].down.shape[1], vocabulary=vocabulary
        )
        self._model.fill(heads=heads, kv_heads=kv_heads, head_dim=self._head_dim, codes=self._codes)
        self._model.fill(embedding=embedding.data_ptr(), head=head.data.data_ptr())
        self._model.layer = ctypes.addressof(self._layers)
        self._choices: dict[tuple[int, int], ThreadChoice] = {}

    def _choice(self, rows: int) -> ThreadChoice | None:
        """The thread choice for passes with this number of rows; None if there is only one thread."""
        most = 1 if _forked else torch.get_num_threads()
        return None if most < 2 else self._choices.setdefault((rows, most), ThreadChoice(most))

    def forward(self, ids: Tensor, cache: KeyValueCache, phases: Tensor) -> Tensor:
        """As `PackedTransformer.forward`, with the phases complex64 [chunk, d/2] of this pass's positions."""
        rows, chunk = ids.shape
        assert cache.length + chunk < cache.own.shape[-2], "the cache is full"
        ids, phases = ids.contiguous(), phases.contiguous()
        logits = torch.empty((rows, self._codes), dtype=torch.float32)
        call = _Pass(rows=rows, chunk=chunk, samples=cache.samples, prefix=cache.prefix, length=cache.length)
        choice = self._choice(rows)
        call.threads = 1 if choice is None else choice.threads()
        if cache.shared is not None:
            strides = cache.shared.stride()
            assert strides[4:] == (self._head_dim, 1)
            call.shared = cache.shared.data_ptr()
            call.shared_layer, call.shared_pair, call.shared_group, call.shared_head = strides[:4]
        strides = cache.own.stride()
        call.own = cache.own.data_ptr() + cache.own.element_size() * strides[4]  # slot 0 is not a token
        call.own_layer, call.own_pair, call.own_row, call.own_head = strides[:4]
        call.ids, call.phases, call.logits = ids.data_ptr(), phases.data_ptr(), logits.data_ptr()
        began = time.perf_counter()
        failure = self._library.forward(ctypes.byref(self._model), ctypes.byref(call))
        if (
            choice is not None and chunk == 1
        ):  # passes of one token have equal costs; those of a prompt do not
            choice.took(call.threads, time.perf_counter() - began)
        if failure == 1:
            raise UserError("a token id is outside the vocabulary", where="rollout engine")
        if failure:
            raise MemoryError(f"no memory for a pass of {rows} x {chunk} tokens")
        cache.length += chunk
        return logits
