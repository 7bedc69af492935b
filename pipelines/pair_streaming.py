"""Judged pairs for training as an endless stream of batches.

    ReplaySampler ──positions──► Ray Data tasks ──clips──► batches
    (pure, by step)              read, decode, resize      NumPy, in the sampler's order

A step's pairs follow from its number, so the stream's position is that number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.feed import Batch, BurstStream
from roboalign_ray.config import DistillationConfig, StudentConfig
from roboalign_ray.judge.clips import prepare_clips
from roboalign_ray.judge.labels import LabelledPairs, ReplaySampler

_STEPS_PER_BURST = 4


class PairStream(BurstStream):
    """Batches of judged pairs in an order that depends on the seed alone.

    A batch holds clips uint8 [B, frames, K, 3, H, W], instruction a list of B strings, and scores float32 [B, 6].

    Args:
        paths: stores of pairs and distillation sets.
        student: what clips are prepared for.
        settings: batch size, replay ratio and split.
        seed: of the order.
        rank, world_size: this consumer's share; shares are disjoint.

    Raises:
        UserError: a store cannot be read, or no pair is in the train split.
    """

    name = "pair stream"

    def __init__(
        self,
        paths: Sequence[str | Path],
        student: StudentConfig,
        settings: DistillationConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        pairs = LabelledPairs(paths)
        identity = {
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "pairs": len(pairs),
            "pairs_per_step": settings.pairs_per_step,
            "replay_ratio": settings.replay_ratio,
        }
        share = len(range(rank, settings.pairs_per_step, world_size))
        super().__init__(identity, share, _PairReader(pairs.paths, student), burst=_STEPS_PER_BURST)
        self._train = pairs.split("train", settings.held_out_fraction)
        self._sampler = ReplaySampler(
            pairs.rounds[self._train], settings.pairs_per_step, settings.replay_ratio, seed
        )
        self._share = slice(rank, None, world_size)
        self._step = 0

    def tasks(self) -> Iterator[dict[str, Any]]:
        """This share's pairs of each step, from the position on."""
        for step in count(self._step):
            yield {"positions": self._train[self._sampler.positions(step)[self._share]]}

    def position(self) -> dict[str, int]:
        """Steps handed out."""
        return {"step": self._step}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """As `position` gave it."""
        self._step = int(position["step"])

    def advance(self) -> None:
        """One step further."""
        self._step += 1


class _PairReader:
    """Turns a step's positions into a block of prepared clips; opens the stores once per process."""

    def __init__(self, paths: tuple[Path, ...], student: StudentConfig) -> None:
        self._paths, self._student = paths, student

    def __call__(self, row: Mapping[str, np.ndarray]) -> Batch:
        pairs = [_opened(self._paths).read(int(number)) for number in row["positions"][0]]
        return {
            "clips": prepare_clips([pair.frames for pair in pairs], self._student),
            "instruction": np.array([pair.instruction for pair in pairs], dtype=object),
            "scores": np.stack([pair.scores for pair in pairs]),
        }


_opened = cache(LabelledPairs)  # once per process
