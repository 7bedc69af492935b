"""Judged pairs as an endless stream of training batches, for students and teachers.

    ReplaySampler ──positions──► LabelledPairs ──pairs──► prepare ──► batches
    (pure, by step)              read once, kept          in a thread, one ahead

A step's pairs depend only on its number, so the stream's position is that number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import LabelledPairs, PairCache, ReplaySampler
from roboalign_ray.judge.data.pairs import JudgedPair

_READ_DEADLINE_S = 600.0

Prepare = Callable[[list[JudgedPair], int], dict[str, Any]]


class PairBatches:
    """Endless batches of judged pairs in an order that depends only on the seed; the next batch is made in advance.

    Args:
        paths: stores of pairs and distillation sets.
        prepare: makes a batch from this worker's pairs and the step's number.
        pairs_per_step: total over all workers.
        held_out_fraction: share of groups left out.
        replay_ratio: share drawn from rounds before the newest; None draws equally from all rounds.
        seed: seed of the order.
        cache_gb: memory for decoded pairs, GB.
        rank, world_size: this worker's share; shares are disjoint.

    Raises:
        UserError: a store cannot be read, or no pair is in the train split.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        prepare: Prepare,
        *,
        pairs_per_step: int,
        held_out_fraction: float,
        replay_ratio: float | None,
        seed: int,
        cache_gb: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pairs = LabelledPairs(paths, PairCache(cache_gb))
        self._train, self._prepare = self.pairs.split("train", held_out_fraction), prepare
        rounds = self.pairs.rounds[self._train]
        if replay_ratio is None:
            rounds, replay_ratio = 0 * rounds, 0.0
        self._sampler = ReplaySampler(rounds, pairs_per_step, replay_ratio, seed)
        self._share = slice(rank, None, world_size)
        self._identity = {
            "seed": seed,
            "world_size": world_size,
            "pairs": len(self.pairs),
            "pairs_per_step": pairs_per_step,
            "replay_ratio": replay_ratio,
        }
        self._step = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of `prepare` for this worker's pairs, step by step, without end."""
        with ThreadPoolExecutor(1, thread_name_prefix="pairs") as background:
            following = background.submit(self._batch_of_step, self._step)
            while True:
                batch = following.result(timeout=_READ_DEADLINE_S)
                self._step += 1
                following = background.submit(self._batch_of_step, self._step)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position (number of returned steps) and the values that the order depends on."""
        return {**self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            UserError: the state belongs to a stream with another order.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved position has {key} {state.get(key)}, this run {value}",
                    where="judged pairs",
                    remedy="resume with the settings and pairs of the original run, or start a new one",
                )
        self._step = int(state["step"])

    def _batch_of_step(self, step: int) -> dict[str, Any]:
        positions = self._train[self._sampler.positions(step)[self._share]]
        return self._prepare([self.pairs.read(int(number)) for number in positions], step)
