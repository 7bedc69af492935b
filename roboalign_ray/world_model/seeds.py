"""Generators of sampling seeds: counter-based (Philox), so that a sample depends on its own seed alone.

A rollout's seed is the key. Numbers of different use take different counters of the same key, so none of them depends
on what was drawn before, on the batch, or on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from roboalign_ray.foundation.failures import UserError


def generator(seed: int, *counter: int) -> np.random.Generator:
    """The generator of a seed.

    Args:
        counter: up to three numbers below 2**64 that name a stream of their own; 2**64 blocks of numbers lie between
            two streams.

    Raises:
        UserError: the seed is outside [0, 2**128).
    """
    check_seeds([seed])
    words = np.zeros(4, np.uint64)
    words[1 : 1 + len(counter)] = counter
    return np.random.Generator(np.random.Philox(key=int(seed), counter=words))


def check_seeds(seeds: Iterable[int]) -> None:
    """That these are keys.

    Raises:
        UserError: one is outside [0, 2**128).
    """
    for seed in seeds:
        if not 0 <= seed < 2**128:
            raise UserError(f"seed {seed} is outside [0, 2**128)", where="rollout")
