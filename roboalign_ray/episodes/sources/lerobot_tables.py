"""Rows of LeRobot's Parquet data files: an episode's rows in frame order, checked, and its columns as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.lerobot_entries import EpisodeEntry
from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host
from roboalign_ray.foundation.storage.parquet import open_parquet, read_columns

INDEX_COLUMNS = frozenset({"episode_index", "frame_index", "timestamp", "task_index", "next.success"})
_RATE_TOLERANCE = 0.01  # maximum relative difference between the timestamps' rate and fps
_SHORTEST_STEP, _LONGEST_STEP = 0.5, 1.5  # frames between two consecutive rows


def episode_rows(folder: DatasetFolder, entry: EpisodeEntry, columns: Collection[str]) -> pa.Table:
    """The episode's rows in frame order, with these columns if the file has them.

    Raises:
        EpisodeError: the file is missing or corrupt, the number of rows differs from the episode table, or rows are
            missing or doubled.
    """
    path = folder.file(entry.data_file, "data file")
    wanted = INDEX_COLUMNS | set(columns)
    try:
        table = _read_data_file(path, _stamp(path), frozenset(wanted), _groups_of(path, entry.index))
        if "episode_index" in table.column_names:
            table = table.filter(pc.equal(whole_numbers(table, "episode_index"), entry.index))
        if "frame_index" in table.column_names:
            frame = whole_numbers(table, "frame_index")
            order = pc.sort_indices(frame)
            _check_frames(frame.take(order).to_pylist())
            table = table.take(order)
    except UserError as error:
        raise EpisodeError(error.what, where=entry.data_file) from error
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
        raise_if_host(error, where=str(path))
        raise EpisodeError(
            f"Parquet file cannot be read ({first_line(error)[:200]})", where=entry.data_file
        ) from error
    if table.num_rows != entry.length:
        raise EpisodeError(
            f"{table.num_rows} rows, the episode table says {entry.length}", where=entry.data_file
        )
    return table


def _stamp(path: Path) -> tuple[int, int]:
    """A value that changes when a file is rewritten."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _groups_of(path: Path, index: int) -> tuple[int, ...] | None:
    """Row groups that may hold the episode, by the file's statistics; None if there are no statistics."""
    return _groups_by_episode(path, _stamp(path)).get(index)


@lru_cache(maxsize=2)
def _groups_by_episode(path: Path, stamp: tuple[int, int]) -> dict[int, tuple[int, ...]]:
    del stamp
    found: dict[int, list[int]] = {}
    with open_parquet(path) as file:
        place = file.schema_arrow.get_field_index("episode_index")
        if place < 0 or file.metadata.num_row_groups < 2:
            return {}
        leaf = next(
            number
            for number in range(file.metadata.num_columns)
            if file.metadata.schema.column(number).path == "episode_index"
        )
        for group in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(group).column(leaf).statistics
            if statistics is None or not statistics.has_min_max:
                return {}
            if not 0 <= statistics.max - statistics.min < 1_000_000:
                return {}
            for index in range(statistics.min, statistics.max + 1):
                found.setdefault(index, []).append(group)
    return {index: tuple(groups) for index, groups in found.items()}


@lru_cache(maxsize=2)
def _read_data_file(
    path: Path, stamp: tuple[int, int], columns: frozenset[str], groups: tuple[int, ...] | None
) -> pa.Table:
    """Columns of the row groups; in v3.0 one row group holds many episodes, and is read once for all of them."""
    del stamp
    return read_columns(
        path, columns.__contains__, groups=None if groups is None else lambda metadata: groups
    )


def whole_numbers(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column of integers; lists of one number count as that number.

    Raises:
        EpisodeError: the column has other types, or a gap.
    """
    values = table[column].combine_chunks()
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or _is_fixed(values.type):
        flat = values.flatten()
        if len(flat) != len(values):
            raise EpisodeError(f"'{column}' holds lists of several numbers")
        values = flat
    if not pa.types.is_integer(values.type) or values.null_count:
        raise EpisodeError(f"'{column}' holds no whole numbers")
    return values


def _check_frames(frames: list[int]) -> None:
    """Check that `frame_index` in order is 0, 1, 2 …"""
    for place, frame in enumerate(frames):
        if frame == place:
            continue
        if place and frame == frames[place - 1]:
            raise EpisodeError(f"frame_index {frame} stands in two rows")
        said = f"skips from {frames[place - 1]} to {frame}" if place else f"begins at {frame}, not 0"
        raise EpisodeError(f"frame_index {said}")


def check_timestamps(rows: pa.Table, fps: float, where: str) -> None:
    """Compare the rows' timestamps, if there are any, with the dataset's rate.

    Raises:
        EpisodeError: they have another rate, do not increase, or skip a frame.
    """
    if "timestamp" not in rows.column_names or rows.num_rows < 2:
        return
    times = matrix(rows, "timestamp", where, dtype=np.float64)[:, 0]
    steps = np.diff(times) * fps
    frame, error = _frame_of(times * fps)
    if abs(frame - 1) > _RATE_TOLERANCE + 3 * error:
        rate = f"{fps / frame:.4g} Hz" if frame > 0 else "no rate"
        raise EpisodeError(f"timestamps tell {rate}, info.json says fps {fps:g}", where=where)
    off = np.flatnonzero((steps < _SHORTEST_STEP) | (steps > _LONGEST_STEP))
    if len(off):
        row = int(off[0])
        raise EpisodeError(
            f"timestamps step by {steps[row] / fps:.4g} s from row {row} to {row + 1}, a frame takes {1 / fps:.4g} s",
            where=where,
        )


def _frame_of(times: np.ndarray) -> tuple[float, float]:
    """Duration of a frame from times [T] in frames: the slope of a fitted line, and its standard error.

    With only the first and the last time, the jitter of a short episode would look like another rate.
    """
    rows = np.arange(len(times)) - (len(times) - 1) / 2
    apart = times - times.mean()
    slope = float((rows * apart).sum() / (rows**2).sum())
    rest = apart - slope * rows
    return slope, float(np.sqrt((rest**2).sum() / max(1, len(times) - 2) / (rows**2).sum()))


def matrix(rows: pa.Table, column: str, where: str, *, dtype: Any = np.float32) -> np.ndarray:
    """A column of numbers, or of nested lists of them, as [T, D].

    Raises:
        EpisodeError: there is no such column, rows differ in length, or a value is not a finite number.
    """
    if rows.column_names.count(column) != 1:
        said = "is missing" if column not in rows.column_names else "stands there twice"
        raise EpisodeError(f"column '{column}' {said}", where=where)
    values = _flat(rows[column].combine_chunks(), column, where)
    if not len(values) or len(values) % rows.num_rows:
        raise EpisodeError(
            f"column '{column}' holds {len(values)} numbers in {rows.num_rows} rows", where=where
        )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        array = np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype).reshape(rows.num_rows, -1)
    if not np.isfinite(array).all():
        row, dim = np.argwhere(~np.isfinite(array))[0]
        raise EpisodeError(f"'{column}' holds {array[row, dim]} at row {row}, dimension {dim}", where=where)
    return array


def _flat(values: pa.Array, column: str, where: str) -> pa.Array:
    """The numbers of a column, row by row; all rows must have the same number of values."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while True:
        kind = values.type
        if values.null_count:
            raise EpisodeError(
                f"column '{column}' has a gap: {values.null_count} values are missing", where=where
            )
        if _is_fixed(kind):
            values = values.flatten()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            sizes = pc.unique(pc.list_value_length(values))
            if len(sizes) > 1:
                raise EpisodeError(
                    f"column '{column}' is no table of numbers (rows of {sizes[0]} and of {sizes[1]})",
                    where=where,
                )
            values = values.flatten()
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return values
        else:
            raise EpisodeError(f"column '{column}' is no table of numbers ({kind})", where=where)


def _is_fixed(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind)


def success(rows: pa.Table) -> bool | None:
    """Whether any row is marked as a success; None if the dataset has no such column, or no values in it."""
    if "next.success" not in rows.column_names:
        return None
    marks = rows["next.success"].combine_chunks()
    if marks.null_count == len(marks):
        return None
    return bool(matrix(rows, "next.success", "next.success").any())
