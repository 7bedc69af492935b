"""How a version of weights travels from the learner to whoever uses it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roboalign_ray.config.base import FrozenConfig


class WeightsConfig(FrozenConfig):
    """Sizes and precision of a version on its way. All values are choices of this project.

    Attributes:
        bucket_bytes: most bytes of one bucket; a larger tensor is cut.
        precision: "exact" keeps every bit; "bfloat16" rounds float32 to the nearest bfloat16, ties to even (a relative
            error of 2^-8 at most), and halves the bytes. Other types are left alone.
    """

    bucket_bytes: int = Field(512_000_000, ge=64)
    precision: Literal["exact", "bfloat16"] = "exact"
