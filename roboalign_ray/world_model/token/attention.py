"""Attention in two parts, over a group's shared prefix and over a sample's own tokens, merged exactly.

The prefix part is a matrix product with one row per sample of the group, so the prefix's keys and values are read once
per group instead of once per sample. It returns its output and the log of its softmax's denominator. The second part
needs nothing else: the whole prefix counts as one more key, whose score is that log and whose value is that output.
Scores are not scaled here: the packed query weights contain the factor 1/sqrt(d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from roboalign_ray.world_model.token.cache import KeyValueCache

# A row's bits depend on the number of rows only if that number is small; see packed.py.
_ROWS_MULTIPLE = 8


def attend(queries: Tensor, cache: KeyValueCache, layer: int, length: int) -> Tensor:
    """Causal attention of the last `chunk` tokens of each row over the group's prefix and the row's own tokens.

    Args:
        queries: [rows, chunk, heads, d], rows of a group adjacent, scaled and rotated.
        cache: already holds the chunk's own keys and values.
        layer: index of the layer.
        length: number of own tokens per row, including the chunk.

    Returns:
        [rows, chunk, heads, d].
    """
    shared, own = cache.layer(layer)
    prefix = None if shared is None else attend_shared(queries, *shared)
    if queries.shape[1] == 1 and queries.dtype == torch.float32:
        return _attend_one(queries, *own, length, prefix)
    recent = _attend_chunk(queries, *own, length)
    return recent[0] if prefix is None else merge(prefix, recent)


def _attend_one(
    queries: Tensor, keys: Tensor, values: Tensor, length: int, prefix: tuple[Tensor, Tensor] | None
) -> Tensor:
    """One token per row: two batched products; key 0 stands for the prefix, and its product is a placeholder."""
    rows, _, heads, head_dim = queries.shape
    stacked = queries.reshape(len(keys), -1, head_dim)  # heads that share keys are rows of one product
    values = values.narrow(1, 1, length)
    if prefix is None:
        scores = torch.bmm(stacked, keys.narrow(1, 1, length).transpose(1, 2))
        return torch.bmm(scores.softmax(-1), values).view(rows, 1, heads, head_dim)
    scores = torch.bmm(stacked, keys.narrow(1, 0, 1 + length).transpose(1, 2))
    scores[..., 0] = prefix[1].reshape(len(keys), -1)
    weights = scores.softmax(-1)
    output = prefix[0].reshape(stacked.shape) * weights[..., :1]
    return output.baddbmm_(weights.narrow(2, 1, length), values).view(rows, 1, heads, head_dim)


def _attend_chunk(queries: Tensor, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Several tokens per row: (output [rows, chunk, heads, d], log denominators float32 [rows, chunk, heads])."""
    rows, chunk, heads, _ = queries.shape
    kv_heads = len(keys) // rows
    keys, values = (part.narrow(1, 1, length).unflatten(0, (rows, kv_heads)) for part in (keys, values))
    if heads != kv_heads:
        keys, values = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (keys, values))
    mask = None
    if length > chunk:
        mask = torch.full((chunk, length), -torch.inf, dtype=queries.dtype, device=queries.device)
        mask.triu_(length - chunk + 1)
    output, log_sum = _flash(queries.transpose(1, 2), keys, values, causal=mask is None, mask=mask)
    return output.transpose(1, 2), log_sum.transpose(1, 2)


def attend_shared(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of every token of a group over the group's prefix.

    Args:
        queries: [rows, chunk, heads, d], rows of a group adjacent.
        keys, values: [groups, kv_heads, P, d].

    Returns:
        (output [rows, chunk, heads, d], log denominators float32 [rows, chunk, heads]).
    """
    rows, chunk, heads, head_dim = queries.shape
    groups, kv_heads = keys.shape[:2]
    repeat, tokens = heads // kv_heads, rows * chunk // groups
    queries = queries.reshape(groups, tokens, heads, head_dim)
    padding = -tokens % _ROWS_MULTIPLE
    if padding:
        queries = torch.nn.functional.pad(queries, (0, 0, 0, 0, 0, padding))
    if repeat > 1:
        queries = queries.unflatten(2, (kv_heads, repeat)).transpose(2, 3).flatten(1, 2)
    output, log_sum = _flash(queries.transpose(1, 2), keys, values)
    output, log_sum = output.transpose(1, 2), log_sum.transpose(1, 2)
    if repeat > 1:
        output = output.unflatten(1, (-1, repeat)).transpose(2, 3).flatten(2, 3)
        log_sum = log_sum.unflatten(1, (-1, repeat)).transpose(2, 3).flatten(2, 3)
    output, log_sum = output[:, :tokens], log_sum[:, :tokens]
    return output.reshape(rows, chunk, heads, head_dim), log_sum.reshape(rows, chunk, heads)


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """The joint softmax's output [rows, chunk, heads, d] of two disjoint sets of keys; overwrites `second`."""
    # Every second element of a buffer, because the tail of a vectorised loop would depend on the batch (packed.py).
    weight = torch.sub(second[1], first[1], out=first[1].new_empty((*first[1].shape, 2))[..., 0]).sigmoid_()
    return second[0].sub_(first[0]).mul_(weight[..., None]).add_(first[0])


def _flash(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(output [B, heads, R, d], log denominators [B, heads, R]); PyTorch's fused kernel on a CPU."""
    if queries.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, causal, attn_mask=mask, scale=1.0
        )
    scores = torch.matmul(queries, keys.transpose(-1, -2)).float()
    if causal:
        rows, columns = scores.shape[-2:]
        scores += torch.full((rows, columns), -torch.inf, device=scores.device).triu_(1)
    if mask is not None:
        scores += mask
    log_sum = scores.logsumexp(-1)
    return torch.matmul((scores - log_sum[..., None]).exp().to(values.dtype), values), log_sum
