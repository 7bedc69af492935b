"""Finite scalar quantisation: every latent dimension is bounded to a few levels and rounded.

Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505). The codebook is implicit: a code
is the mixed-radix number of its levels, first dimension least significant.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

_EPSILON = 1e-3  # keeps tanh's outermost values inside the outermost level's rounding interval


class FSQ(nn.Module):
    """Quantiser for vectors of len(levels) values.

    Args:
        levels: levels per dimension, each at least 2; (7, 5, 5, 5, 5) has 4,375 codes.
    """

    _half: Tensor
    _offset: Tensor
    _shift: Tensor
    _half_width: Tensor
    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.codes = prod(levels)
        sizes = torch.tensor(levels, dtype=torch.float32)
        half = (sizes - 1) * (1 + _EPSILON) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        strides = torch.tensor([prod(levels[:i]) for i in range(len(levels))])
        for name, value in (
            ("_half", half),
            ("_offset", offset),
            ("_shift", torch.atanh(offset / half)),
            ("_half_width", torch.tensor([level // 2 for level in levels], dtype=torch.float32)),
            ("_levels", torch.tensor(levels)),
            ("_basis", strides),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise with a straight-through gradient, in float32 even under autocast.

        Args:
            z: float [..., L].

        Returns:
            quantised values [..., L] in [-1, 1] and codes int64 [...].
        """
        with torch.autocast(z.device.type, enabled=False):
            bounded = torch.tanh(z.float() + self._shift) * self._half - self._offset
            rounded = bounded + (bounded.round() - bounded).detach()
            return rounded / self._half_width, self.values_to_codes(rounded.detach() / self._half_width)

    def values_to_codes(self, values: Tensor) -> Tensor:
        """Convert quantised values [..., L] to codes int64 [...]."""
        digits = (values * self._half_width + self._half_width).round().long()
        return (digits * self._basis).sum(-1)

    def codes_to_values(self, codes: Tensor) -> Tensor:
        """Convert codes int64 [...] to quantised values float32 [..., L]."""
        digits = (codes.unsqueeze(-1) // self._basis) % self._levels
        return (digits.float() - self._half_width) / self._half_width
