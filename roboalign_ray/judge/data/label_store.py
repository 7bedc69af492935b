"""Stores of labels: the distillation set, which grows by rounds, and the mixing of old and new labels in training.

    set/
      round-00001.part-000.parquet    rows of judged pairs, as in a store of pairs
      round-00001.part-001.parquet    appended later to the same round
      round-00002.part-000.parquet    …

A part appears complete or not at all. A pair with an existing id is not written again, so a restarted process may
append the same pairs again. One process writes; any number of processes read.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.splits import positions_in
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import flush, whole_file
from roboalign_ray.foundation.storage.shards import write_rows
from roboalign_ray.judge.data.pairs import ROW_GROUP, ROW_SCHEMA, JudgedPair, PairRows, PairStore, encode_pair

_PART = re.compile(r"^round-(\d{5,})\.part-(\d{3,})\.parquet$")


@dataclass(frozen=True)
class Appended:
    """The result of an append: the number of pairs written, and of pairs that existed before."""

    written: int
    known: int


class DistillationSet(PairRows):
    """Judged pairs by round, appended exactly once per id.

    Args:
        folder: folder of the set, created when absent.

    Attributes:
        rounds: int64 [N]; as every list, in order of rounds.

    Raises:
        UserError: a part cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, _parts(folder))

    def append(self, round_number: int, pairs: Iterable[JudgedPair | Mapping[str, Any]]) -> Appended:
        """Add a round's pairs, without those whose id is already in the set, in any round.

        Args:
            pairs: pairs, or rows of `encode_pair`.

        Raises:
            UserError: the round is before the newest one, or below 1 (0 is for the pairs of a store).
        """
        newest = int(self.rounds.max()) if len(self) else 1
        if round_number < newest:
            raise UserError(
                f"round {round_number} comes before round {newest}, which exists already",
                where=str(self.path),
                remedy="use a round of at least 1 that is not before the newest one",
            )
        known, seen = set(self.ids), 0
        rows: list[Mapping[str, Any]] = []
        for item in pairs:
            name = item.pair_id if isinstance(item, JudgedPair) else item["pair_id"]
            if name in known:
                seen += 1
                continue
            known.add(name)
            rows.append(encode_pair(item) if isinstance(item, JudgedPair) else item)
        if rows:
            self._write_part(round_number, rows)
            self._load(_parts(self.path))
        return Appended(len(rows), seen)

    def _load(self, shards: Iterable[Path]) -> None:
        super()._load(shards)
        numbers = [_part_order(part)[0] for part, _ in self.places]
        self.rounds = np.asarray(numbers, dtype=np.int64)

    def _write_part(self, round_number: int, rows: list[Mapping[str, Any]]) -> None:
        orders = [_part_order(part) for part in _parts(self.path)]
        part = max((part for number, part in orders if number == round_number), default=-1) + 1
        with whole_file(self.path / f"round-{round_number:05d}.part-{part:03d}.parquet") as draft:
            write_rows(draft, rows, ROW_SCHEMA, ROW_GROUP)
            flush(draft)
        flush(self.path)


class PairCache:
    """A cache of decoded pairs, limited in size; the least recently read pairs are dropped first.

    Decoding a pair takes as long as a small student's training step on it, and training reads each pair many times.

    Args:
        gigabytes: size limit of the frames; 0 keeps nothing.
    """

    def __init__(self, gigabytes: float) -> None:
        self._most, self._bytes = gigabytes * 1e9, 0
        self._pairs: OrderedDict[tuple[Path, str], JudgedPair] = OrderedDict()

    def read(self, store: PairRows, number: int) -> JudgedPair:
        """The pair at a position of a store."""
        key = (store.path, store.ids[number])
        if key in self._pairs:
            self._pairs.move_to_end(key)
            return self._pairs[key]
        pair = store.read(number)
        if pair.frames.nbytes <= self._most:
            self._pairs[key] = pair
            self._bytes += pair.frames.nbytes
        while self._bytes > self._most:
            self._bytes -= self._pairs.popitem(last=False)[1].frames.nbytes
        return pair


class LabelledPairs:
    """Several stores of pairs and distillation sets as one list.

    Args:
        cache: cache of decoded pairs; may be shared with other lists.

    Attributes:
        ids, group_ids, kinds, instructions, rounds, scores: as in `DistillationSet`; a store's pairs have round 0.

    Raises:
        UserError: a path holds neither, or all of them are empty.
    """

    def __init__(self, paths: Sequence[str | Path], cache: PairCache | None = None) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self._cache = cache or PairCache(0)
        self._parts = [_open(path) for path in self.paths]
        self.ids = [name for part in self._parts for name in part.ids]
        self.group_ids = [name for part in self._parts for name in part.group_ids]
        self.kinds = [name for part in self._parts for name in part.kinds]
        self.instructions = [text for part in self._parts for text in part.instructions]
        if not self.ids:
            raise UserError(
                "no judged pair",
                where=", ".join(map(str, paths)),
                remedy="make some with: roboalign bench build",
            )
        self.rounds = np.concatenate([_rounds(part) for part in self._parts])
        self.scores = np.concatenate([part.scores for part in self._parts])
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, number: int) -> JudgedPair:
        """One pair, by position, video decoded."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        store = self._parts[part]
        return self._cache.read(store, int(number - (self._ends[part] - len(store))))

    def split(self, name: str, fraction: float) -> np.ndarray:
        """Positions int64 [n] of the pairs in "train" or "held_out", by a hash of the group id."""
        return np.array(positions_in(name, self.group_ids, fraction), np.int64)


class ReplaySampler:
    """Selects the pairs of a training step: a fixed share from earlier rounds, the rest from the newest round.

    A step's pairs depend only on seed and step, so a resumed run needs only its step number. When a pool is used
    up, it is drawn from again in a new order.

    Args:
        rounds: int [N], round of each pair that may be drawn.
        batch_size: pairs per step.
        replay_ratio: share drawn from rounds before the newest; if there is only one round, all pairs come from it.
        seed: seed of the orders.
    """

    def __init__(self, rounds: np.ndarray, batch_size: int, replay_ratio: float, seed: int = 0) -> None:
        rounds = np.asarray(rounds)
        if not len(rounds):
            raise UserError("no pair to train on", where="distillation", remedy="give more judged pairs")
        newest = rounds == rounds.max()
        self._pools = [np.flatnonzero(newest), np.flatnonzero(~newest)]
        replayed = round(batch_size * replay_ratio) if len(self._pools[1]) else 0
        self._counts = [batch_size - replayed, replayed]
        self._seed = seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def positions(self, step: int) -> np.ndarray:
        """Positions int64 [batch_size] into `rounds`, for a step counted from 0."""
        return np.concatenate([self._drawn(pool, step) for pool in (0, 1)])

    def _drawn(self, pool: int, step: int) -> np.ndarray:
        count, size = self._counts[pool], len(self._pools[pool])
        places = np.arange(step * count, (step + 1) * count)
        return np.array([self._order(pool, int(place) // size)[place % size] for place in places], np.int64)

    def _order(self, pool: int, turn: int) -> np.ndarray:
        key = (pool, turn)
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != pool or k[1] >= turn - 1}
            order = np.random.default_rng((self._seed, *key)).permutation(len(self._pools[pool]))
            self._orders[key] = self._pools[pool][order]
        return self._orders[key]


def _open(path: Path) -> PairStore | DistillationSet:
    if path.is_dir() and any(_PART.match(entry.name) for entry in path.iterdir()):
        return DistillationSet(path)
    return PairStore(path)


def _rounds(part: PairStore | DistillationSet) -> np.ndarray:
    return part.rounds if isinstance(part, DistillationSet) else np.zeros(len(part), np.int64)


def _parts(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if _PART.match(path.name)), key=_part_order)


def _part_order(path: Path) -> tuple[int, int]:
    match = _PART.match(path.name)
    assert match is not None
    return int(match[1]), int(match[2])
