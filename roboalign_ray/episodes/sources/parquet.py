"""Columns of Parquet files that anybody may have written: what they unpack to is checked before it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import first_line, raise_if_host

MOST_TABLE_BYTES = 1 << 30  # of the columns that are read, unpacked
_MOST_METADATA_BYTES = 64 << 20  # of texts in the file's own description
_BYTES_A_VALUE = 8


def read_columns(
    path: Path,
    wanted: Callable[[str], bool],
    *,
    groups: Callable[[pq.FileMetaData], Sequence[int]] | None = None,
    most_bytes: int = MOST_TABLE_BYTES,
) -> pa.Table:
    """Some columns of a Parquet file.

    Args:
        path: the file.
        wanted: whether to read the column of that name.
        groups: the row groups to read, told by the file's description; None reads all.
        most_bytes: a table that unpacks to more is refused before it is unpacked.

    Raises:
        EpisodeError: no Parquet file, damaged, or larger than allowed.
        HostError: the file system denies access, or the memory is full.
    """
    try:
        with open_parquet(path) as file:
            columns = [name for name in file.schema_arrow.names if wanted(name)]
            chosen = list(range(file.metadata.num_row_groups) if groups is None else groups(file.metadata))
            check_size(path, file.metadata, chosen, columns, most_bytes)
            # Arrow takes a name for the beginning of others too ("action" for "action.gripper").
            return file.read_row_groups(chosen, columns=columns, use_threads=False).select(columns)
    except EpisodeError:
        raise
    except pa.ArrowMemoryError as error:  # the size was checked, so a damaged page asked for it
        raise EpisodeError(f"Parquet file cannot be read ({first_line(error)})", where=str(path)) from None
    except Exception as error:  # Arrow's decoders raise whatever damaged pages lead them to
        raise_if_host(error, where=str(path))
        raise EpisodeError(
            f"Parquet file cannot be read ({first_line(error)[:200]})", where=str(path)
        ) from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file, with bounds on the texts and lists of its own description."""
    return pq.ParquetFile(
        path,
        thrift_string_size_limit=_MOST_METADATA_BYTES,
        thrift_container_size_limit=1_000_000,
        pre_buffer=False,
    )


def check_size(
    path: Path, metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], most_bytes: int
) -> None:
    """Refuse row groups that unpack to more than allowed, as far as the file's description tells it."""
    names, beginnings = set(columns), tuple(f"{column}." for column in columns)
    size = 0
    for number in groups:
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            if column.path_in_schema in names or column.path_in_schema.startswith(beginnings):
                size += max(column.total_uncompressed_size, _BYTES_A_VALUE * column.num_values, 0)
    if size > most_bytes:
        raise EpisodeError(
            f"its rows unpack to {size >> 20} MB, at most {most_bytes >> 20} MB are read", where=str(path)
        )
