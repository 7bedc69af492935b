"""Scores of many clips: Parquet files of rows, one row per clip, written by one process and resumable.

    folder/
      scoring.json                  which input, which judges: another job is refused
      scores/part-000000.parquet    one row per clip
      second/part-000000.parquet    in two stages: the teacher's rows of the clips that it saw
      quarantine.parquet            clips without a score, with the reason
      card.json                     counts and histograms

A part appears complete or not at all, so a process that dies loses only rows that it had not written. A clip whose
content or judge changed is scored again: its old row is removed before the new one is written. No clip has two rows at
any time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import flush, whole_file
from roboalign_ray.foundation.storage.parquet import read_columns
from roboalign_ray.judge.data.score_record import RECORD, SCHEMA_VERSION, JudgeIdentity
from roboalign_ray.judge.protocol import Judgement
from roboalign_ray.judge.rubric import names

QUARANTINE = "quarantine.parquet"
SCORES, SECOND = "scores", "second"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_ROW_GROUP = 4096
_INDEX = ("clip_id", "input_sha256", "instruction", "stamp", "judge_id")

SCORE_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("input_sha256", pa.string()),
        ("instruction", pa.string()),
        ("stamp", pa.string()),
        *((name, pa.float32()) for name in names()),
        *((f"{name}_std", pa.float32()) for name in names()),
        ("total", pa.float32()),
        ("rationale", pa.string()),
        ("judge", pa.string()),
        ("version", pa.int64()),
        ("judge_id", pa.string()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("seconds", pa.float64()),
    ],
    metadata={"roboalign_ray.scores_schema_version": str(SCHEMA_VERSION)},
)
_QUARANTINE_SCHEMA = pa.schema([("clip_id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Scored:
    """What the index knows of a scored clip: hash of the content, instruction, stamp of its files, judge."""

    sha256: str
    instruction: str
    stamp: str
    judge_id: str


def score_row(judgement: Judgement, judge: JudgeIdentity, **about: Any) -> dict[str, Any]:
    """A row of `SCORE_SCHEMA`.

    Args:
        about: the columns that are not the judge's.
    """
    scores = map(float, judgement.scores)
    stds = map(float, judgement.std)
    return {
        **dict(zip(names(), scores, strict=True)),
        **dict(zip((f"{name}_std" for name in names()), stds, strict=True)),
        "total": judgement.total,
        "rationale": judgement.rationale,
        "judge": judge.name,
        "version": judge.version,
        "judge_id": judge.digest,
        **about,
    }


class ScoreSet:
    """The rows of one judge in a folder.

    Args:
        folder: folder of the parts; it need not exist.

    Attributes:
        scored: clip id -> what is known of its row.

    Raises:
        UserError: a part cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scored: dict[str, Scored] = {}
        self._part_of: dict[str, Path] = {}
        for part in self.parts():
            self._add(read_columns(part, _INDEX.__contains__, schema=SCORE_SCHEMA), part)

    def parts(self) -> list[Path]:
        """The files, in the order in which they were written."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _PART.fullmatch(path.name))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as one part. Rows of the same clips that were written before are removed first."""
        if not rows:
            return
        self.drop({row["clip_id"] for row in rows} & self.scored.keys())
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[1]) for part in self.parts() if (match := _PART.fullmatch(part.name))]
        path = self.folder / f"part-{max(numbers, default=-1) + 1:06d}.parquet"
        table = pa.Table.from_pylist(list(rows), schema=SCORE_SCHEMA)
        _write(table, path)
        self._add(table.select(_INDEX), path)

    def drop(self, clips: Collection[str]) -> None:
        """Remove the rows of these clips."""
        for part in {self._part_of[name] for name in clips}:
            table = read_columns(part, lambda name: True)
            kept = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(sorted(clips), pa.string()))))
            if len(kept):
                _write(kept, part)
            else:
                part.unlink()
                flush(self.folder)
        for name in clips:
            del self.scored[name], self._part_of[name]

    def of_other_judges(self, judge: JudgeIdentity) -> list[str]:
        """Clips whose row is by another judge."""
        return [name for name, known in self.scored.items() if known.judge_id != judge.digest]

    def table(self) -> pa.Table:
        """All rows."""
        parts = self.parts()
        if not parts:
            return SCORE_SCHEMA.empty_table()
        return pa.concat_tables(read_columns(part, lambda name: True, schema=SCORE_SCHEMA) for part in parts)

    def _add(self, table: pa.Table, part: Path) -> None:
        for name, *known in zip(*(table[column].to_pylist() for column in _INDEX), strict=True):
            if name in self.scored:
                raise UserError(f"two rows of clip '{name}'", where=str(self.folder))
            self.scored[name], self._part_of[name] = Scored(*known), part


def write_quarantine(folder: Path, reasons: Mapping[str, str]) -> None:
    """Replace the list of clips without a score."""
    rows = [{"clip_id": name, "reason": reason} for name, reason in sorted(reasons.items())]
    _write(pa.Table.from_pylist(rows, schema=_QUARANTINE_SCHEMA), folder / QUARANTINE)


def read_quarantine(folder: Path) -> dict[str, str]:
    """Clips without a score, and why.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / QUARANTINE
    if not path.is_file():
        return {}
    table = read_columns(path, lambda name: True, schema=_QUARANTINE_SCHEMA)
    return dict(zip(table["clip_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def final_scores(folder: Path) -> pa.Table:
    """One row per clip: the teacher's where it saw the clip in a second stage, else the first judge's.

    Raises:
        UserError: there are no scores, or a file cannot be read.
    """
    if not (folder / RECORD).is_file():
        raise UserError("no scores here", where=str(folder), remedy="write them with: roboalign score")
    first, second = ScoreSet(folder / SCORES).table(), ScoreSet(folder / SECOND).table()
    kept = first.filter(pc.invert(pc.is_in(first["clip_id"], second["clip_id"].combine_chunks())))
    return pa.concat_tables([kept, second])


def total_std(table: pa.Table) -> np.ndarray:
    """Standard deviation of each row's total, float64 [N], in points: that of a sum of independent scores."""
    stds = [table[f"{name}_std"].to_numpy() for name in names()]
    return np.sqrt(np.square(np.stack(stds, axis=1).astype(np.float64)).sum(axis=1))


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as draft:
        pq.write_table(table, draft, row_group_size=_ROW_GROUP, compression="zstd")
        flush(draft)
    flush(path.parent)
