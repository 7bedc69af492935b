"""Reads columns of untrusted Parquet files: the unpacked size is checked before anything is unpacked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host
from roboalign_ray.foundation.storage.parquet_pages import page_sizes

MOST_TABLE_BYTES = 1 << 30  # of the columns that are read, unpacked
_MOST_METADATA_BYTES = 64 << 20  # of texts in the file's own description
_BYTES_A_VALUE = 8
_BYTES_AT_ONCE, _MOST_ROWS_AT_ONCE = 128 << 20, 1 << 16


def read_columns(
    path: Path,
    wanted: Callable[[str], bool],
    *,
    schema: pa.Schema | None = None,
    optional: Collection[str] = (),
    groups: Callable[[pq.FileMetaData], Sequence[int]] | None = None,
    most_bytes: int = MOST_TABLE_BYTES,
) -> pa.Table:
    """Some columns of a Parquet file.

    Args:
        path: the file.
        wanted: whether to read the column of that name.
        schema: columns that the file must hold, with their types; other columns are ignored.
        optional: columns of `schema` that may be absent.
        groups: selects the row groups to read from the file's metadata; None reads all.
        most_bytes: a table that unpacks to more is refused before it is unpacked.

    Raises:
        UserError: the file is not Parquet, is damaged, or is larger than allowed.
        HostError: the file system denies access, or the memory is full.
    """
    try:
        with open_parquet(path) as file:
            _check_columns(file.schema_arrow, schema, optional)
            columns = [name for name in file.schema_arrow.names if wanted(name)]
            chosen = list(range(file.metadata.num_row_groups) if groups is None else groups(file.metadata))
            rows_at_once = check_size(path, file.metadata, chosen, columns, most_bytes)
            # Arrow also selects columns that a name is a prefix of ("action" selects "action.gripper").
            return _read(file, chosen, columns, rows_at_once, most_bytes).select(columns)
    except UserError:
        raise
    except pa.ArrowMemoryError as error:  # the size was checked, so a damaged page caused it
        raise UserError(f"Parquet file cannot be read ({first_line(error)})", where=str(path)) from None
    except Exception as error:  # damaged pages can make Arrow's decoders raise any exception
        raise_if_host(error, where=str(path))
        raise UserError(
            f"Parquet file cannot be read ({first_line(error)[:200]})", where=str(path)
        ) from error


def _check_columns(found: pa.Schema, wanted: pa.Schema | None, optional: Collection[str]) -> None:
    for column in wanted or ():
        if column.name not in found.names:
            if column.name in optional:
                continue
            raise ValueError(f"column '{column.name}' is missing")
        if found.field(column.name).type != column.type:
            raise ValueError(f"column '{column.name}' is {found.field(column.name).type}, not {column.type}")


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open the file with bounds on the strings and lists in its metadata."""
    return pq.ParquetFile(
        path,
        thrift_string_size_limit=_MOST_METADATA_BYTES,
        thrift_container_size_limit=1_000_000,
        pre_buffer=False,
    )


def check_size(
    path: Path, metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], most_bytes: int
) -> int:
    """Refuse row groups that unpack to more than allowed, by their number of values and their page headers.

    A dictionary holds each distinct string once, and every row may refer to the longest one. So the size of string
    rows is not known in advance; the number of rows that may safely be unpacked at once is.

    Returns:
        The number of rows that may be unpacked at once.

    Raises:
        UserError: the row groups unpack to more than `most_bytes`.
        ValueError: a page header is damaged.
    """
    names, beginnings = set(columns), tuple(f"{column}." for column in columns)
    size = longest = 0
    with path.open("rb") as file:
        for number in groups:
            group = metadata.row_group(number)
            for place in range(group.num_columns):
                column = group.column(place)
                if column.path_in_schema not in names and not column.path_in_schema.startswith(beginnings):
                    continue
                unpacked, dictionary = _unpacked(file, column)
                size, longest = size + unpacked, max(longest, dictionary)
                if size > most_bytes:
                    raise UserError(
                        f"its rows unpack to more than {most_bytes >> 20} MB, so many are not read",
                        where=str(path),
                    )
    return max(1, min(_MOST_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, longest)))


def _read(
    file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], rows_at_once: int, most_bytes: int
) -> pa.Table:
    """Read the columns a few rows at a time, so that repeated strings are noticed before they fill the memory."""
    batches, size = [], 0
    for batch in file.iter_batches(rows_at_once, row_groups=groups, columns=columns, use_threads=False):
        size += batch.nbytes
        if size > most_bytes:
            raise ValueError(f"its rows unpack to more than {most_bytes >> 20} MB")
        batches.append(batch)
    if not batches:
        return file.read_row_groups([], columns=columns)
    return pa.Table.from_batches(batches)


def _unpacked(file: BinaryIO, column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Unpacked bytes of a column's pages, and of its dictionary of strings or byte arrays."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    pages = list(page_sizes(file, start, start + column.total_compressed_size))
    size = max(sum(page.unpacked for page in pages), _BYTES_A_VALUE * column.num_values)
    if column.physical_type != "BYTE_ARRAY":
        return size, 0
    return size, max((page.unpacked for page in pages if page.is_dictionary), default=0)
