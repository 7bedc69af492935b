"""Transfer of weight versions from the learner to the workers that use them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roboalign_ray.config.base import FrozenConfig


class WeightsConfig(FrozenConfig):
    """Bucket size and precision of a weight version in transfer. All values are choices of this project.

    Attributes:
        bucket_bytes: maximum size of one bucket in bytes; a larger tensor is divided.
        precision: "exact" keeps every bit; "bfloat16" rounds float32 to the nearest bfloat16, ties to even (a relative
            error of 2^-8 at most), which halves the bytes. Other types do not change.
    """

    bucket_bytes: int = Field(512_000_000, ge=64)
    precision: Literal["exact", "bfloat16"] = "exact"
