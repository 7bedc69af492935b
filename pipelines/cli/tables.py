"""Tables for a terminal of any width: columns that do not fit side by side continue below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

_GAP = 2  # characters between columns


@dataclass(frozen=True)
class Column:
    """A title and its cells, one per row."""

    title: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """Characters of the widest cell."""
        return max(cell_len(text) for text in (self.title, *self.cells))


def print_columns(console: Console, names: Column, columns: Sequence[Column]) -> None:
    """Print columns beside the names of the rows, in as many blocks as the console's width requires.

    Args:
        console: the console; its markup should be off if titles come from data.
        names: first column of every block, left-justified.
        columns: the other columns, right-justified. A column that is too wide for the console is folded.
    """
    for number, block in enumerate(_blocks(names, columns, console.width)):
        if number:
            console.print()
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        table.add_column(names.title, no_wrap=True)
        for column in block:
            table.add_column(column.title, justify="right", overflow="fold")
        for row, name in enumerate(names.cells):
            table.add_row(name, *(column.cells[row] for column in block))
        console.print(table)


def _blocks(names: Column, columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Blocks of columns that fit beside the names, at least one column per block."""
    block: list[Column] = []
    used = names.width + _GAP
    for column in columns:
        if block and used + column.width + _GAP > width:
            yield block
            block, used = [], names.width + _GAP
        block.append(column)
        used += column.width + _GAP
    if block:
        yield block
