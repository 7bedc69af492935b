"""No table is wider than its terminal, and every cell stays whole and beside its row's name."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from roboalign_ray.pipelines.cli.jobs import _COLUMNS, _print_rows
from roboalign_ray.pipelines.cli.tables import Column, print_columns


def printed(width: int, names: Column, columns: list[Column]) -> list[str]:
    stream = io.StringIO()
    print_columns(Console(file=stream, width=width, markup=False), names, columns)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_every_cell_is_whole_at_every_width(width: int, count: int) -> None:
    names = Column("", ["Physics adherence /2", "Total /10"])
    columns = [Column(f"video{n:02d}.mp4", [f"{n}.25 ± 0.10", f"{n}.50 ± 0.20"]) for n in range(count)]
    lines = printed(width, names, columns)
    assert max(map(len, lines)) <= width
    blocks = "\n".join(lines).split("\n\n")
    assert all(block.splitlines()[1].startswith("Physics adherence /2") for block in blocks)
    for row, name in enumerate(names.cells):
        cells = [line.removeprefix(name).split("  ") for line in lines if line.startswith(name)]
        told = [cell.strip() for line in cells for cell in line if cell.strip()]
        assert told == [column.cells[row] for column in columns]


def test_one_block_where_all_fits() -> None:
    assert printed(80, Column("a", ["x"]), [Column("b", ["1"]), Column("c", ["2"])]) == ["a  b  c", "x  1  2"]


def test_a_title_that_is_too_wide_is_folded() -> None:
    lines = printed(30, Column("", ["Total"]), [Column("v" * 60, ["1.00"])])
    assert max(map(len, lines)) <= 30
    assert "".join(line.strip() for line in lines).count("v") == 60


def test_evaluation_fits_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = dict.fromkeys(_COLUMNS, 12.345678) | {"policy": "reference + recent, W = 6"}
    _print_rows([row, row])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert all(title in text for title in _COLUMNS.values())
    assert "…" not in text
