"""Labels gathered over time: the distillation set that grows by rounds, and how old and new are mixed in training.

    set/
      round-00001.part-000.parquet    rows of judged pairs, as in a store of pairs
      round-00001.part-001.parquet    appended later to the same round
      round-00002.part-000.parquet    …

A part appears whole or not at all, and a pair whose id is there already is not written again: whoever restarts may
append what it appended before. One process writes; any number read.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.splits import check_split, split_of
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.pairs import ROW_SCHEMA, JudgedPair, PairStore, decode_pair, encode_pair
from roboalign_ray.judge.rubric import DIMENSIONS

_PART = re.compile(r"^round-(\d{5,})\.part-(\d{3,})\.parquet$")
_INDEX = ("pair_id", "group_id", "kind", "instruction", "scores")
_ROW_GROUP = 16


@dataclass(frozen=True)
class Appended:
    """What an append did: pairs written, and pairs that were there already."""

    written: int
    known: int


class DistillationSet:
    """Judged pairs by round, appended exactly once per id.

    Args:
        folder: made when absent.

    Attributes:
        ids, group_ids, kinds, instructions: one per pair, in order of rounds.
        rounds: int64 [N].
        scores: float32 [N, 6], rubric points.

    Raises:
        UserError: a part cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._read_index()

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, round_number: int, pairs: Iterable[JudgedPair]) -> Appended:
        """Add a round's pairs, leaving out those whose id is in the set already, in this round or another.

        Raises:
            UserError: a round before the newest one, or below 1 (0 is what a store was built with).
        """
        newest = int(self.rounds.max()) if len(self) else 1
        if round_number < newest:
            raise UserError(
                f"round {round_number} comes before round {newest}, which is there",
                where=str(self.folder),
                remedy="rounds only rise, from 1",
            )
        known, rows, seen = set(self.ids), [], 0
        for pair in pairs:
            if pair.pair_id in known:
                seen += 1
                continue
            known.add(pair.pair_id)
            rows.append(encode_pair(pair))
        if rows:
            self._write_part(round_number, rows)
            self._read_index()
        return Appended(len(rows), seen)

    def read(self, number: int) -> JudgedPair:
        """One pair, video decoded.

        Raises:
            EpisodeError: its video does not decode.
        """
        part, row = self._places[number]
        with pq.ParquetFile(part) as file:
            table = file.read_row_group(row // _ROW_GROUP)
        return decode_pair(table.slice(row % _ROW_GROUP, 1).to_pylist()[0])

    def _write_part(self, round_number: int, rows: list[dict]) -> None:
        parts = [
            int(m[2])
            for p in self.folder.iterdir()
            if (m := _PART.match(p.name)) and int(m[1]) == round_number
        ]
        name = f"round-{round_number:05d}.part-{max(parts, default=-1) + 1:03d}.parquet"
        temporary = self.folder / f".writing-{uuid.uuid4().hex}"
        try:
            table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
            pq.write_table(table, temporary, row_group_size=_ROW_GROUP, compression="zstd")
            _flush(temporary)
            temporary.rename(self.folder / name)
            _flush(self.folder)
        finally:
            temporary.unlink(missing_ok=True)

    def _read_index(self) -> None:
        parts = sorted((p for p in self.folder.iterdir() if _PART.match(p.name)), key=_part_order)
        tables = [_read_columns(part) for part in parts]
        self._places = [
            (part, row) for part, table in zip(parts, tables, strict=True) for row in range(len(table))
        ]
        numbers = [_part_order(part)[0] for part, _ in self._places]
        self.rounds = np.asarray(numbers, dtype=np.int64)
        rows = [row for table in tables for row in table.to_pylist()]
        self.ids = [row["pair_id"] for row in rows]
        self.group_ids = [row["group_id"] for row in rows]
        self.kinds = [row["kind"] for row in rows]
        self.instructions = [row["instruction"] for row in rows]
        scores = [row["scores"] for row in rows]
        self.scores = np.asarray(scores, dtype=np.float32).reshape(-1, len(DIMENSIONS))


class LabelledPairs:
    """Several stores of pairs and distillation sets as one list.

    Attributes:
        ids, group_ids, kinds, instructions, rounds, scores: as in `DistillationSet`; a store's pairs are round 0.

    Raises:
        UserError: a path holds neither, or nothing is in any of them.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = tuple(Path(path) for path in paths)
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
        return self._parts[part].read(int(number - (self._ends[part] - len(self._parts[part]))))

    def split(self, name: str, fraction: float) -> np.ndarray:
        """Positions int64 [n] of the pairs in "train" or "held_out", by a hash of the group id."""
        wanted = check_split(name)
        return np.array(
            [n for n, g in enumerate(self.group_ids) if split_of(g, fraction) == wanted], np.int64
        )


class ReplaySampler:
    """Which pairs a training step sees: a stated share from earlier rounds, the rest from the newest.

    A step's pairs depend on the seed and the step alone, so a resumed run needs only its step number. Each pool is gone
    through in a new order every time it is used up.

    Args:
        rounds: int [N], round of each pair that may be drawn.
        batch_size: pairs a step.
        replay_ratio: share drawn from rounds before the newest; where there is only one, all come from it.
        seed: of the orders.
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


def _part_order(path: Path) -> tuple[int, int]:
    match = _PART.match(path.name)
    assert match is not None
    return int(match[1]), int(match[2])


def _read_columns(part: Path) -> pa.Table:
    try:
        with pq.ParquetFile(part) as file:
            return file.read(columns=list(_INDEX))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"part cannot be read ({reason})", where=str(part)) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
