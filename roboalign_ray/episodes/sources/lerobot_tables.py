"""Rows of LeRobot's Parquet data files: an episode's rows in frame order, and their columns as arrays."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.lerobot_entries import EpisodeEntry


def episode_rows(root: Path, entry: EpisodeEntry) -> pa.Table:
    """The episode's rows in frame order.

    Raises:
        EpisodeError: missing or corrupt file, or another number of rows than the episode table says.
    """
    path = root / entry.data_file
    if not path.is_file():
        raise EpisodeError("no such data file", where=entry.data_file)
    try:
        table = _read_data_file(path)
        if "episode_index" in table.column_names:
            mask = np.asarray(table["episode_index"]).reshape(-1) == entry.index
            table = table.filter(pa.array(mask))
        if "frame_index" in table.column_names:
            table = table.sort_by("frame_index")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise EpisodeError(f"Parquet file cannot be read ({error})", where=entry.data_file) from error
    if table.num_rows != entry.length:
        raise EpisodeError(
            f"{table.num_rows} rows, the episode table says {entry.length}", where=entry.data_file
        )
    return table


@lru_cache(maxsize=2)
def _read_data_file(path: Path) -> pa.Table:
    """A whole data file; v3.0 keeps many episodes in one, read once for all of them."""
    return pq.read_table(path)


def matrix(rows: pa.Table, column: str, where: str) -> np.ndarray:
    """A list column as float32 [T, D].

    Raises:
        EpisodeError: rows of different length, no number, or a number that is not finite.
    """
    try:
        values = np.array(rows[column].to_pylist(), dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"column '{column}' is no table of numbers ({error})", where=where) from error
    values = values.reshape(rows.num_rows, -1)
    if not np.isfinite(values).all():
        row, dim = np.argwhere(~np.isfinite(values))[0]
        raise EpisodeError(f"'{column}' holds {values[row, dim]} at row {row}, dimension {dim}", where=where)
    return values


def success(rows: pa.Table) -> bool | None:
    """Whether any row is marked as a success; None where the dataset has no such column."""
    if "next.success" not in rows.column_names:
        return None
    return any(bool(value) for value in np.ravel(rows["next.success"].to_pylist()))
