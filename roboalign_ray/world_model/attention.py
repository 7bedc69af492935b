"""Attention in two parts, over a group's shared prefix and over a sample's own tokens, merged exactly.

Each part returns its output and the log of its softmax's denominator; two parts with denominators a and b make up the
joint softmax with weights a/(a+b) and b/(a+b). The prefix part is a matrix product with one row per sample of the
group, so the prefix's keys and values are read once per group instead of once per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A row's bits depend on the number of rows only where that is small; see packed.py.
_ROWS_MULTIPLE = 8


def attend(queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention of the last `chunk` tokens of each row over the row's own tokens.

    Args:
        queries: [rows, chunk, heads, d].
        own: [rows, 2, kv_heads, S, d], keys and values; the last `chunk` of S belong to the queries.

    Returns:
        (output [rows, chunk, heads, d], log denominators float32 [rows, chunk, heads]).
    """
    rows, chunk, heads, head_dim = queries.shape
    keys, values = own.unbind(1)
    kv_heads, length = keys.shape[1:3]
    if chunk == 1:
        # Heads that share keys become rows of one product.
        output, log_sum = _flash(queries.view(rows, kv_heads, heads // kv_heads, head_dim), keys, values)
        return output.reshape(rows, 1, heads, head_dim), log_sum.reshape(rows, 1, heads)
    if heads != kv_heads:
        keys, values = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (keys, values))
    mask = None
    if length > chunk:
        mask = torch.full((chunk, length), -torch.inf, dtype=queries.dtype, device=queries.device)
        mask.triu_(length - chunk + 1)
    output, log_sum = _flash(queries.transpose(1, 2), keys, values, causal=mask is None, mask=mask)
    return output.transpose(1, 2), log_sum.transpose(1, 2)


def attend_shared(queries: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of every token of a group over the group's prefix.

    Args:
        queries: [rows, chunk, heads, d], rows of a group adjacent.
        shared: [groups, 2, kv_heads, P, d], keys and values.

    Returns:
        As `attend`.
    """
    rows, chunk, heads, head_dim = queries.shape
    keys, values = shared.unbind(1)
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
    # Every second element of a buffer: outside the vectorised loop, whose tail would depend on the batch (packed.py).
    weight = torch.sub(second[1], first[1], out=first[1].new_empty((*first[1].shape, 2))[..., 0]).sigmoid_()
    return second[0].sub_(first[0]).mul_(weight[..., None]).add_(first[0])


def _flash(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(output [B, heads, R, d], log denominators [B, heads, R]); PyTorch's fused kernel on a CPU."""
    if queries.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, causal, attn_mask=mask
        )
    scores = torch.matmul(queries, keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    if causal:
        rows, columns = scores.shape[-2:]
        scores += torch.full((rows, columns), -torch.inf, device=scores.device).triu_(1)
    if mask is not None:
        scores += mask
    log_sum = scores.logsumexp(-1)
    return torch.matmul((scores - log_sum[..., None]).exp().to(values.dtype), values), log_sum
