"""Scored groups of toy size."""

from __future__ import annotations

import numpy as np

from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment


def make_group(seed: int, samples: int = 3, lengths: tuple[int, ...] = (2, 1)) -> ScoredGroup:
    generator = np.random.default_rng(seed)
    segments = []
    for number, length in enumerate(lengths):
        rows = samples if number else 1
        tokens = generator.integers(0, 12, (samples, length, 3), dtype=np.int32)
        segments.append(
            TokenSegment(
                context=generator.integers(0, 12, (rows, 4), dtype=np.int32),
                given=generator.integers(0, 12, (rows, 1, 3), dtype=np.int32),
                actions=generator.integers(0, 5, (length, 2), dtype=np.int32),
                tokens=tokens,
                logprobs=-generator.uniform(2.3, 2.6, tokens.shape).astype(np.float32),
                version=seed + number,
                exact=number == 0,
            )
        )
    seconds = generator.uniform(size=sum(lengths))
    payload, cost = TokenPayload(tuple(segments)), RolloutCost(seconds, 9, 77)
    rollout = Rollout(f"robot/éé {seed}@3", "push “it”", tuple(range(samples)), payload, cost, start=seed)
    scores = [
        Scored(
            float(generator.normal()), {"ssim": 0.1, "lpips": 1 / 3}, 4, generator.normal(size=sum(lengths))
        ),
        Failed("cannot decode", "decode"),
        *(Scored(float("nan")) for _ in range(samples - 2)),
    ]
    return ScoredGroup(rollout, tuple(scores))
