"""Converts a token state to arrays of numbers and back, for other processes and files.

Keys and values of the current segment are included: recomputing them would take as long as the segment did. Weights are
not included: the process that loads a state has them already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.readers import parse_json
from roboalign_ray.world_model.token.cache import KeyValueCache
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.packed import PackedTransformer
from roboalign_ray.world_model.token.refresh_starts import SegmentStart
from roboalign_ray.world_model.token.state import GeneratedSegment, Memory, SharedPrefix, TokenState

_WHERE = "saved state"
_PLAIN = ("past", "own_actions", "origin", "begin_seconds", "peak_sequence", "cache_bytes")


def state_arrays(state: TokenState) -> dict[str, np.ndarray]:
    """The arrays; "header" is JSON text as uint8."""
    memory = state.memory
    header: dict[str, Any] = {
        "prompts": list(state.prompts),
        "seeds": list(state.seeds),
        **{name: getattr(state, name) for name in _PLAIN},
        "segments": [
            {"first": s.first, "version": s.version, "exact": s.exact, "shared": _shared(s.start)}
            for s in state.segments
        ],
        "memory": None if memory is None else {"kept": memory.kept, "lead": memory.lead},
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "actions": state.actions,
        "seconds": np.array(state.seconds),
        "first_context": state.first.context,
        "first_given": state.first.given,
    }
    for number, segment in enumerate(state.segments):
        arrays |= {f"segment{number}_{name}": getattr(segment.start, name) for name in ("context", "given")}
        arrays |= {f"segment{number}_{name}": getattr(segment, name) for name in ("tokens", "logprobs")}
    if memory is not None:
        cache = memory.cache
        arrays["memory_own"] = _numbers(cache.own[..., 1 : 1 + cache.length, :])
        if cache.shared is not None:
            arrays["memory_shared"] = _numbers(cache.shared)
    return arrays


def state_from_arrays(
    arrays: Mapping[str, np.ndarray], layout: SequenceLayout, packed: PackedTransformer, version: int
) -> TokenState:
    """Inverse of `state_arrays`.

    Args:
        layout: layout of the model.
        packed, version: its weights.

    Raises:
        UserError: the arrays are not a state of such a model, or its current segment was begun with other weights.
    """
    try:
        header = parse_json(arrays["header"].tobytes(), where=_WHERE, what="state")
        state = _read(header, arrays, layout)
        if header["memory"] is None:
            return state
        _check_version(state.segments[-1].version, version)
        return _with_memory(state, header["memory"], arrays, packed)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"is not a state of this world model ({first_line(error)})", where=_WHERE) from error


def _read(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], layout: SequenceLayout) -> TokenState:
    first = SegmentStart(arrays["first_context"], arrays["first_given"], True, True)
    seeds = tuple(tuple(map(int, own)) for own in header["seeds"])
    past, actions, groups = int(header["past"]), arrays["actions"], len(first.context)
    if actions.ndim != 3 or actions.shape[2] != layout.action_tokens or len(seeds) != groups:
        raise ValueError(f"actions {actions.shape}, {len(seeds)} groups")
    samples = len(actions) // groups
    before = actions[::samples, :past]
    return TokenState(
        prompts=tuple((str(name), str(instruction)) for name, instruction in header["prompts"]),
        seeds=seeds,
        actions=actions,
        first=first,
        prefix=SharedPrefix(layout.assemble(first.context, first.given, before)),
        segments=tuple(_segment(entry, n, arrays) for n, entry in enumerate(header["segments"])),
        seconds=tuple(arrays["seconds"].tolist()),
        **{name: header[name] for name in _PLAIN},
    )


def _segment(entry: Mapping[str, Any], number: int, arrays: Mapping[str, np.ndarray]) -> GeneratedSegment:
    context, given, tokens, logprobs = (
        arrays[f"segment{number}_{name}"] for name in ("context", "given", "tokens", "logprobs")
    )
    start = SegmentStart(context, given, *map(bool, entry["shared"]))
    return GeneratedSegment(
        start, int(entry["first"]), tokens, logprobs, int(entry["version"]), bool(entry["exact"])
    )


def _with_memory(
    state: TokenState, counts: Mapping[str, Any], arrays: Mapping[str, np.ndarray], packed: PackedTransformer
) -> TokenState:
    own = _tensor(arrays["memory_own"], packed)
    shape = (len(packed.layers), 2, state.rows, packed.kv_heads)
    if own.shape[:4] != shape or own.shape[5:] != (packed.head_dim,):
        raise ValueError(f"keys and values of shape {tuple(own.shape)}")
    shared = _tensor(arrays["memory_shared"], packed) if "memory_shared" in arrays else None
    room = own.new_empty((*own.shape[:4], 1 + own.shape[4], own.shape[5]))
    room[..., 1:, :] = own
    cache = KeyValueCache(shared, room, state.samples)
    cache.length = own.shape[4]
    memory = Memory(packed, cache, int(counts["kept"]), int(counts["lead"]))
    return TokenState(**{**vars(state), "memory": memory})


def _check_version(begun: int, version: int) -> None:
    if begun != version:
        raise UserError(
            f"its current segment was begun with weight version {begun}, the world model holds {version}",
            where=_WHERE,
            remedy="load the weights of that version first",
        )


def _shared(start: SegmentStart) -> tuple[bool, bool]:
    return start.context_shared, start.given_shared


def _numbers(values: Tensor) -> np.ndarray:
    """A tensor as array; NumPy has no bfloat16, so its bits are stored as int16."""
    values = values.detach().cpu().contiguous()
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def _tensor(values: np.ndarray, packed: PackedTransformer) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if packed.dtype == torch.bfloat16:
        tensor = tensor.view(torch.bfloat16)
    if tensor.dtype != packed.dtype:
        raise ValueError(f"keys and values of type {tensor.dtype}, not {packed.dtype}")
    return tensor.to(packed.device, copy=True)
