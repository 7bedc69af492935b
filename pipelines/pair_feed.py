"""Judged pairs for training as an endless stream of batches, made by Ray Data in a process of its own.

    ReplaySampler ──positions──► Ray Data tasks ──clips──► batches
    (pure, by step)              read, decode, resize      NumPy, in the sampler's order

A step's pairs follow from its number, so the stream's position is that number. As with windows, Ray Data runs in short
bursts, and away from the trainer's interpreter lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import DistillationConfig, StudentConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.clips import prepare_clips
from roboalign_ray.judge.labels import LabelledPairs, ReplaySampler

Batch = dict[str, Any]

_STEPS_PER_BURST = 4
_AHEAD = 3  # batches requested before they are needed
_DEADLINE_S = 600.0


class PairStream:
    """Batches of judged pairs in an order that depends on the seed alone.

    Args:
        paths: stores of pairs and distillation sets.
        student: what clips are prepared for.
        settings: batch size, replay ratio and split.
        seed: of the order.
        rank, world_size: this consumer's share; shares are disjoint.

    Raises:
        UserError: a store cannot be read, or no pair is in the train split.
    """

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
        self._paths, self._student = pairs.paths, student
        self._train = pairs.split("train", settings.held_out_fraction)
        self._sampler = ReplaySampler(
            pairs.rounds[self._train], settings.pairs_per_step, settings.replay_ratio, seed
        )
        self._share = slice(rank, None, world_size)
        self._identity: dict[str, Any] = {
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "pairs": len(pairs),
        }
        self._identity |= {"pairs_per_step": settings.pairs_per_step, "replay_ratio": settings.replay_ratio}
        self._size = len(range(rank, settings.pairs_per_step, world_size))
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        """Endless batches: clips uint8 [B, frames, K, 3, H, W], instruction a list of B, scores float32 [B, 6]."""
        parts: list[Batch] = []
        missing = self._size
        for block in self._blocks():
            while len(block["scores"]):
                parts.append({name: values[:missing] for name, values in block.items()})
                block = {name: values[missing:] for name, values in block.items()}
                missing -= len(parts[-1]["scores"])
                if missing == 0:
                    self._step += 1
                    yield _joined(parts)
                    parts, missing = [], self._size

    def state_dict(self) -> dict[str, Any]:
        """The position: steps handed out, with what the order depends on."""
        return {**self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            UserError: the state belongs to a stream of another order.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved position has {key} {state.get(key)}, this stream {value}",
                    where="pair stream",
                    remedy="resume with the settings and pairs the run began with, or start a new one",
                )
        self._step = int(state["step"])

    def _blocks(self) -> Iterator[Batch]:
        following = self._step

        def burst() -> Any:
            nonlocal following
            steps = range(following, following + _STEPS_PER_BURST)
            following += _STEPS_PER_BURST
            chosen = [self._train[self._sampler.positions(step)[self._share]] for step in steps]
            return _dataset(chosen, self._paths, self._student).materialize()

        with ThreadPoolExecutor(1, thread_name_prefix="pairs") as background:
            made = background.submit(burst)
            while True:
                blocks = made.result(timeout=_DEADLINE_S)
                made = background.submit(burst)
                yield from blocks.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)


class PairFeed:
    """`PairStream` from a distance: the same batches, the same positions. Arguments are the stream's."""

    def __init__(self, **arguments: Any) -> None:
        self._stream = PairStream(**arguments)

    def __iter__(self) -> Iterator[Batch]:
        """Endless batches; the position moves on when one is handed out."""
        import ray

        from pipelines.runtime import wait

        actor: Any = ray.remote(num_cpus=0)(_Feed).remote(self._stream)
        pending = deque(actor.next.remote() for _ in range(_AHEAD))
        try:
            while True:
                [(batch, position)] = wait([pending.popleft()], _DEADLINE_S, "judged pairs")
                pending.append(actor.next.remote())
                self._stream.load_state_dict(position)
                # Arrays out of Ray's shared store are read only, which torch warns of.
                yield {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in batch.items()}
        finally:
            ray.kill(actor)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; errors as `PairStream.load_state_dict`."""
        self._stream.load_state_dict(state)


class _Feed:
    """The actor: hands out batches of a stream, one a call."""

    def __init__(self, stream: PairStream) -> None:
        self._stream = stream
        self._batches = iter(stream)

    def next(self) -> tuple[Batch, dict[str, Any]]:
        """The next batch and the position after it."""
        return next(self._batches), self._stream.state_dict()


def _dataset(chosen: list[np.ndarray], paths: tuple[Path, ...], student: StudentConfig) -> Any:
    """A lazy dataset of the chosen pairs, one row each, in order; one task a step."""
    import ray
    from ray.data import TaskPoolStrategy

    rows = [{"positions": positions} for positions in chosen]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.enable_rich_progress_bars = False
    return dataset.map_batches(
        _PairReader(paths, student),
        batch_size=1,
        batch_format="numpy",
        num_cpus=0,  # trainers may hold every CPU; reading for them must not wait until they are done
        compute=TaskPoolStrategy(size=1),
    )


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


_stores: dict[tuple[Path, ...], LabelledPairs] = {}


def _opened(paths: tuple[Path, ...]) -> LabelledPairs:
    if paths not in _stores:
        _stores[paths] = LabelledPairs(paths)
    return _stores[paths]


def _joined(parts: list[Batch]) -> Batch:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "instruction": joined["instruction"].tolist()}
