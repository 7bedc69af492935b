"""Stores of rows in Parquet shards: rows are written one by one and can be read one by one. A row can be anything.

    store/
      shard-00000.parquet    rows, in small row groups
      statistics.json        figures of all rows
      README.md              the card

A store is written beside its final place and moved there when complete, so readers never see an incomplete store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.folder_lock import store_lock
from roboalign_ray.foundation.storage.parquet import read_columns

STATISTICS = "statistics.json"
Item = TypeVar("Item")


@dataclass(frozen=True)
class StoreCard:
    """The text of a store's card besides its figures: where the rows come from and how to make them again.

    Attributes:
        title: first line.
        summary: a paragraph.
        command: the command line that makes this store, "" where there is none.
        license: SPDX name, or a sentence.
        settings: the settings that it was made with (JSON types only).
    """

    title: str
    summary: str = ""
    command: str = ""
    license: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def text(self, figures: Iterable[str]) -> str:
        """Markdown; `figures` are lines that begin with rows of a table of two columns."""
        front = f"---\nlicense: {self.license}\n---\n" if self.license else ""
        lines = [f"# {self.title}", "", self.summary, "", "| | |", "|---|---|", *figures]
        if self.command:
            lines += ["", "Made by", "", f"    {self.command}"]
        if self.settings:
            lines += ["", "Settings", "", "```json", json.dumps(self.settings, indent=1), "```"]
        return front + "\n".join(lines) + "\n"


def already_exists(path: Path) -> UserError:
    """The error for a store that is written where something stands."""
    return UserError(
        "already exists",
        where=str(path),
        remedy="choose another place, or add --overwrite to replace a store",
    )


@contextmanager
def new_store(path: Path, what: str, is_one: Callable[[Path], bool], *, overwrite: bool) -> Iterator[Path]:
    """A folder to write a store in. It appears at `path` when the block ends without an error.

    Args:
        path: final path of the store.
        what: kind of store, with its article, for messages.
        is_one: whether a folder is such a store; only such a store or an empty folder is overwritten.
        overwrite: replace an existing store.

    Raises:
        UserError: the path exists and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise already_exists(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_one(path))):
        raise UserError(f"is not {what}, so it is not overwritten", where=str(path))
    with store_lock(path), complete_or_absent(path) as folder:
        yield folder


class ShardWriter:
    """Writes rows into the shards of a folder; memory holds one shard.

    Args:
        folder: as given by `new_store`.
        schema: schema of a row.
        shard_rows: rows per file.
        row_group: rows per row group: reading one row reads this many.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, shard_rows: int, row_group: int) -> None:
        self._folder, self._schema = folder, schema
        self._shard_rows, self._row_group = shard_rows, row_group
        self._rows: list[Mapping[str, Any]] = []
        self._shards = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the next row."""
        self._rows.append(row)
        if len(self._rows) >= self._shard_rows:
            self._flush()

    def finish(self, statistics: Mapping[str, Any], card: str) -> int:
        """Write the last rows, the statistics and the card. Return the total bytes of all files in the folder."""
        if self._rows:
            self._flush()
        write_json(self._folder / STATISTICS, statistics)
        (self._folder / "README.md").write_text(card, encoding="utf-8")
        return sum(file.stat().st_size for file in self._folder.iterdir())

    def _flush(self) -> None:
        path = self._folder / f"shard-{self._shards:05d}.parquet"
        write_rows(path, self._rows, self._schema, self._row_group)
        self._rows, self._shards = [], self._shards + 1


def write_rows(path: Path, rows: list[Mapping[str, Any]], schema: pa.Schema, row_group: int) -> None:
    """Write one Parquet file."""
    table = pa.Table.from_pylist(rows, schema=schema)
    # Encoded video does not compress further, and dictionary pages would only copy it.
    pq.write_table(table, path, row_group_size=row_group, compression="zstd", use_dictionary=False)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON file, indented so that people can read it."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shards_of(folder: Path) -> list[Path]:
    """A store's shards, in the order of their rows."""
    return sorted(folder.glob("shard-*.parquet"))


class ShardedRows(Generic[Item]):
    """Random access to the rows of Parquet files, in order. A few small columns are read when it is opened.

    Args:
        path: folder of the files.
        columns: the columns read when opened; the first one holds the rows' names.
        what: the word for a row in messages.
        decode: turns a row into an item.
        schema: the columns that every file must hold, with their types.
        optional: columns of `schema` that older files lack.

    Attributes:
        shards: the files.
        places: file and row number in it, of each row.
        index: values of each column that was read when opened.
        ids: names of the rows.
    """

    def __init__(
        self,
        path: Path,
        shards: Iterable[Path],
        *,
        columns: Sequence[str],
        what: str,
        decode: Callable[[Mapping[str, Any]], Item],
        schema: pa.Schema,
        optional: Collection[str] = (),
    ) -> None:
        self.path, self._columns, self._what, self._decode = path, tuple(columns), what, decode
        self._schema, self._optional = schema, optional
        self._load(shards)

    def _load(self, shards: Iterable[Path]) -> None:
        """Read the index of these files.

        Raises:
            UserError: a file is not Parquet or lacks a column or a value of the index, or two rows share a name.
        """
        self.shards = list(shards)
        tables = [self._index_of(shard) for shard in self.shards]
        pairs = zip(self.shards, tables, strict=True)
        self.places = [(shard, row) for shard, table in pairs for row in range(len(table))]
        self.index: dict[str, list[Any]] = {
            name: [value for table in tables for value in table[name].to_pylist()] for name in self._columns
        }
        self.ids: list[str] = self.index[self._columns[0]]
        self._numbers = {name: number for number, name in enumerate(self.ids)}
        if len(self._numbers) < len(self.ids):
            twice = next(name for number, name in enumerate(self.ids) if self._numbers[name] != number)
            raise UserError(f"two {self._what}s named '{twice}'", where=str(self.path))

    def _index_of(self, shard: Path) -> pa.Table:
        table = self._read(shard, self._columns)
        for name in self._columns:
            if table[name].null_count:
                raise UserError(f"column '{name}' lacks a value", where=str(shard))
        return table

    def _read(self, shard: Path, columns: Sequence[str]) -> pa.Table:
        wanted = frozenset(columns)
        return read_columns(shard, wanted.__contains__, schema=self._schema, optional=self._optional)

    def _row(self, shard: Path, row: int) -> dict[str, Any]:
        """One row, read through its row group."""
        inside = row

        def group_of(metadata: pq.FileMetaData) -> list[int]:
            nonlocal inside
            group, inside = _place(metadata, row)
            return [group]

        wanted = frozenset(self._schema.names)
        table = read_columns(
            shard, wanted.__contains__, schema=self._schema, optional=self._optional, groups=group_of
        )
        return table.slice(inside, 1).to_pylist()[0]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Item]:
        return (self.read(number) for number in range(len(self)))

    def read(self, which: int | str) -> Item:
        """One row, by position or name, decoded.

        Raises:
            UserError: there is no such row, its file cannot be read, or the row is inconsistent.
        """
        number = self._numbers.get(which, -1) if isinstance(which, str) else which
        if not 0 <= number < len(self):
            raise UserError(
                f"no {self._what} {which!r}",
                where=str(self.path),
                remedy=f"it holds {len(self)} {self._what}s",
            )
        shard, row = self.places[number]
        try:
            return self._decode(self._row(shard, row))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{self._what} '{self.ids[number]}' cannot be read ({first_line(error)})", where=str(shard)
            ) from error

    def cells(self, numbers: Iterable[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield some columns of the rows at these positions, file by file, without reading other columns.

        A column that a file does not have gives None.
        """
        wanted: dict[Path, list[int]] = {}
        for number in numbers:
            shard, row = self.places[number]
            wanted.setdefault(shard, []).append(row)
        for shard, rows in wanted.items():
            table = self._read(shard, columns)
            there = set(table.column_names)
            for row in rows:
                yield {name: table[name][row].as_py() if name in there else None for name in columns}


def _place(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    """The row group that holds a row, and the row's number in it."""
    group = 0
    while row >= (size := metadata.row_group(group).num_rows):
        row, group = row - size, group + 1
    return group, row
