"""Attention blocks of the student: pre-norm, over any axis, with or without another sequence to look at."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of `x` to itself or to `context`; both are normalised here.

    Args:
        width: of x and of the output.
        context_width: of `context`; None for self-attention.
    """

    def __init__(self, width: int, heads: int, dropout: float, context_width: int | None = None) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context_width) if context_width else None
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, L, width], context [B, M, context_width], mask bool [B, M] of positions that are there."""
        x = self.norm(x)
        seen = x if context is None or self.context_norm is None else self.context_norm(context)
        q = rearrange(self.query(x), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.key_value(seen), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        there = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=there, dropout_p=dropout)
        return self.out(rearrange(out, "b h l d -> b l (h d)"))


def feed_forward(width: int, inner: int, dropout: float) -> nn.Sequential:
    """Norm, widen, GELU, back."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width)
    )


class SpaceTimeLayer(nn.Module):
    """Each patch looks along time, then around its own frame (divided attention, arXiv 2102.05095).

    Chosen over joint attention because the camera stands still: a patch's own history shows freezing, flicker and
    reversal, and the cost is T + N per token, not T * N.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.time = Attention(width, heads, dropout)
        self.space = Attention(width, heads, dropout)
        self.ffn = feed_forward(width, ffn, dropout)

    def forward(self, x_BTNW: Tensor) -> Tensor:
        """[B, T, N, W] to the same."""
        batch = x_BTNW.shape[0]
        x = rearrange(x_BTNW, "b t n w -> (b n) t w")
        x = rearrange(x + self.time(x), "(b n) t w -> (b t) n w", b=batch)
        x = x + self.space(x)
        x = x + self.ffn(x)
        return rearrange(x, "(b t) n w -> b t n w", b=batch)


class FusionLayer(nn.Module):
    """Queries look at each other, at the instruction, and then, knowing what was asked, at the video."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.text = Attention(width, heads, dropout, width)
        self.video = Attention(width, heads, dropout, width)
        self.ffn = feed_forward(width, ffn, dropout)

    def forward(self, x_BQW: Tensor, text_BLW: Tensor, text_mask: Tensor, video_BMW: Tensor) -> Tensor:
        """[B, Q, W] to the same."""
        x = x_BQW + self.self_attention(x_BQW)
        x = x + self.text(x, text_BLW, text_mask)
        x = x + self.video(x, video_BMW)
        return x + self.ffn(x)
