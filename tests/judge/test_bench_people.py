"""Labels by people and the table of methods: what is written, filled in and read back."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import re
from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.annotate import COLUMNS, annotated, choose, read_table, write_sheet
from roboalign_ray.judge.bench.table import method_table, table_cells
from roboalign_ray.judge.data.pairs import JudgedPair, PairStore, open_pairs, write_pairs
from roboalign_ray.judge.rubric import DIMENSIONS, maxima, names
from roboalign_ray.pipelines.cli import main as cli


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("people") / "bench"
    pairs = (
        JudgedPair(
            pair_id=f"pair/{n}",
            group_id=f"group/{n // 2}",
            frames=np.full((4, 16, 16, 3), 5 * n, np.uint8),
            fps=10.0,
            instruction=f'push <the "{n}">, please',
            scores=(rng.random(6) * maxima()).astype(np.float32),
            annotator="made",
            kind="a" if n < 20 else "b",
        )
        for n in range(24)
    )
    write_pairs(pairs, path)
    return open_pairs(path)


def filled(path: Path, changes: dict[tuple[int, str], str]) -> Path:
    """The empty table with full marks in its first three rows, but for these cells (row 0 is the first pair)."""
    rows = list(csv.DictReader(path.open(newline="")))
    for row in rows[:3]:
        row.update({dimension.name: str(dimension.maximum) for dimension in DIMENSIONS})
    for (number, column), value in changes.items():
        rows[number][column] = value
    out = path.with_name("filled.csv")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return out


def test_a_sheet_goes_out_and_comes_back(store: PairStore, tmp_path: Path) -> None:
    chosen = choose(store, 8)
    assert sorted(store.kinds[n] for n in chosen) == ["a"] * 4 + ["b"] * 4
    write_sheet(store, chosen, tmp_path / "sheet")
    page = (tmp_path / "sheet" / "index.html").read_text()
    assert page.count("<video") == 8
    assert "push &lt;the &quot;" in page
    assert all(html.escape(text) in page for d in DIMENSIONS for text in d.levels.values())
    assert "made" not in page  # who labelled it before is not told
    rows = list(csv.DictReader((tmp_path / "sheet" / "scores.csv").open(newline="")))
    assert [row["pair_id"] for row in rows] == [store.ids[n] for n in chosen]
    path = filled(tmp_path / "sheet" / "scores.csv", {(1, "physics_adherence"): "1.5"})
    scores = read_table(path, store.ids)
    assert list(scores) == [row["pair_id"] for row in rows[:3]]
    assert scores[rows[1]["pair_id"]].tolist() == [3, 2, 1, 1, 1, 1.5]
    pairs = list(annotated(store, scores, "anna"))
    assert {pair.annotator for pair in pairs} == {"anna"}
    before = store.scores[store.ids.index(pairs[0].pair_id)]
    assert pairs[0].provenance["before"]["scores"] == pytest.approx(before.tolist())
    with pytest.raises(UserError, match="already exists"):
        write_sheet(store, chosen, tmp_path / "sheet")


@pytest.mark.parametrize(
    ("cell", "value", "told"),
    [
        ((2, "contact_realism"), "", r"row 4: column 'contact_realism' is empty"),
        ((0, "instruction_following"), "4", r"row 2: column 'instruction_following' is 4, not within 0 to 3"),
        ((1, "physics_adherence"), "good", r"row 3: column 'physics_adherence' is 'good', not a number"),
        ((1, "physics_adherence"), "nan", r"row 3: column 'physics_adherence' is nan"),
        ((0, "pair_id"), "pair/99", r"row 2: column 'pair_id': no pair 'pair/99'"),
    ],
)
def test_bad_cells_name_row_and_column(store: PairStore, tmp_path: Path, cell, value: str, told: str) -> None:
    write_sheet(store, [0, 1, 2, 3], tmp_path / "sheet")
    path = filled(tmp_path / "sheet" / "scores.csv", {cell: value})
    with pytest.raises(UserError, match=told):
        read_table(path, store.ids)


def test_bad_tables_are_told(store: PairStore, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(UserError, match="cannot be read"):
        read_table(path, store.ids)
    path.write_text("pair_id,instruction_following\npair/1,3\n")
    with pytest.raises(UserError, match="column 'manipulation_success' is missing"):
        read_table(path, store.ids)
    path.write_text(",".join(COLUMNS) + "\npair/1,x,,,,,,\n")
    with pytest.raises(UserError, match="no row is filled in"):
        read_table(path, store.ids)


def test_the_table_is_mean_and_deviation_by_method(store: PairStore) -> None:
    rows = {row.method: row for row in method_table({"bench": store})}
    for kind, part in (("a", store.scores[:20]), ("b", store.scores[20:])):
        points = np.concatenate([part, part.sum(axis=1, keepdims=True)], axis=1).astype(np.float64)
        assert rows[kind].videos == len(part)
        assert np.allclose(rows[kind].mean, points.mean(axis=0), atol=1e-5)
        assert np.allclose(
            rows[kind].std, np.sqrt(((points - points.mean(axis=0)) ** 2).mean(axis=0)), atol=1e-5
        )
    cells = table_cells(method_table({"x": store, "y": store}))
    assert cells[0] == ["method", "videos", *names(), "total"]
    assert {line[0] for line in cells[1:]} == {"x: a", "x: b", "y: a", "y: b"}
    held_out = store.split("held_out")
    assert sum(row.videos for row in method_table({"bench": store}, "held_out")) == len(held_out)


def test_the_commands(store: PairStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, back = tmp_path / "sheet", tmp_path / "anna"
    assert cli.run(["bench", "annotate", str(store.path), "--out", str(sheet), "--count", "6"]) == 0
    path = filled(sheet / "scores.csv", {})
    arguments = ["bench", "annotate", str(store.path), "--import", str(path), "--annotator", "anna"]
    assert cli.run([*arguments, "--out", str(back)]) == 0
    assert open_pairs(back).annotators == ["anna"] * 3
    assert cli.run(["bench", "table", str(back), "--json"]) == 0
    assert '"total": {' in capsys.readouterr().out
    assert cli.run(["bench", "table", str(store.path)]) == 0
    assert "±" in capsys.readouterr().out
    bad = filled(sheet / "scores.csv", {(2, "contact_realism"): ""})
    assert cli.run([*arguments[:3], "--import", str(bad), "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "none").exists()
    assert cli.run(["bench", "table", str(tmp_path / "nowhere")]) == 2


def test_no_cell_is_a_formula_and_ids_come_back(tmp_path: Path) -> None:
    ids = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\tx", "'=kept", "plain"]
    pairs = [
        JudgedPair(
            pair_id=name,
            group_id=name,
            frames=np.zeros((4, 16, 16, 3), np.uint8),
            fps=10.0,
            instruction='=HYPERLINK("http://x")',
            scores=np.ones(6, np.float32),
            annotator="made",
            kind="a",
        )
        for name in ids
    ]
    write_pairs(pairs, tmp_path / "pairs")
    store = open_pairs(tmp_path / "pairs")
    write_sheet(store, range(len(ids)), tmp_path / "sheet")
    table = tmp_path / "sheet" / "scores.csv"
    rows = list(csv.reader(table.open(newline="")))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)
    changes = {(row, dimension.name): "1" for row in range(len(ids)) for dimension in DIMENSIONS}
    assert sorted(read_table(filled(table, changes), store.ids)) == sorted(ids)


def test_a_page_runs_its_own_script_alone(store: PairStore, tmp_path: Path) -> None:
    """The policy holds the digests of the page's script and style, and allows no other source."""
    write_sheet(store, [0], tmp_path / "sheet")
    page = (tmp_path / "sheet" / "index.html").read_text()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=", page)  # handlers in attributes would not run under it
