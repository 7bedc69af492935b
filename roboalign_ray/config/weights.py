"""How a version of weights travels from the learner to whoever uses it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from roboalign_ray.config.base import FrozenConfig


class WeightsConfig(FrozenConfig):
    """Sizes and precision of a version on its way. All values are choices of this project.

    Attributes:
        bucket_bytes: most bytes of one bucket; a larger tensor is cut.
        precision: "exact" keeps every bit; "bfloat16" rounds float32 to the nearest bfloat16, ties to even (a relative
            error of 2^-8 at most), and halves the bytes. Other types are left alone.
        changed_only: whether a version may be told as what changed since the one before. After two AdamW steps at
            5e-5, 31 % of the bytes in bfloat16; in float32 all of them, but for rows of tables that nothing touched.
            Finding and laying on the changes takes processor time: it pays where versions travel at less than about
            0.2 GB/s, all hops together, and never within one machine.
        block: elements that are told together where any of them changed. 1 told least, by a factor of two: changes
            are scattered. Larger blocks take less time and suit tables of which few rows change.
        full_every: every so many versions one is told in full, so that a late holder has few changes to lay on.
    """

    bucket_bytes: int = Field(512_000_000, ge=64)
    precision: Literal["exact", "bfloat16"] = "exact"
    changed_only: bool = False
    block: PositiveInt = 1
    full_every: PositiveInt = 10
