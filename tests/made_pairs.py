"""Judged pairs of toy size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from roboalign_ray.judge.data.pairs import JudgedPair


def made_pair(number: int, group: int = 0, **changes) -> JudgedPair:
    rng = np.random.default_rng(number)
    values = {
        "pair_id": f"made/{number}",
        "group_id": f"group/{group}",
        "frames": np.full((4, 16, 16, 3), 10 * (number % 20), np.uint8),
        "fps": 10.0,
        "instruction": f"do {number}",
        "scores": rng.integers(0, [4, 3, 2, 2, 2, 3]).astype(np.float32),
        "annotator": "made",
        "kind": f"kind{number % 3}",
        "provenance": {"number": number, "nested": [1, None]},
    }
    return JudgedPair(**(values | changes))


def made_pairs(count: int = 40) -> Iterator[JudgedPair]:
    return (made_pair(number, group=number // 3) for number in range(count))
