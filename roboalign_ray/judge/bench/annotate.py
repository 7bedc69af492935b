"""Labels by people: an HTML page to fill in, and a reader for the resulting table."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from roboalign_ray.episodes.video import encode_browser_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.pairs import JudgedPair, PairStore
from roboalign_ray.judge.rubric import DIMENSIONS, names

COLUMNS = ("pair_id", "instruction", *names())
TABLE_NAME, PAGE_NAME = "scores.csv", "index.html"
_SHOWN_PIXELS = 256
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of spreadsheet formulas

_STYLE = """body{font:15px/1.4 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
section{display:flex;gap:1.5rem;border-top:1px solid #ccc;padding:1rem 0}video{image-rendering:pixelated}
label{display:flex;justify-content:space-between;gap:1rem}input{width:4rem}dt{font-weight:600;margin-top:.6rem}"""

_SCRIPT = """function save(){
  const rows=[COLUMNS];
  document.querySelectorAll('section').forEach(s=>rows.push([s.dataset.pair,s.dataset.instruction,
    ...[...s.querySelectorAll('input')].map(i=>i.value)]));
  const cell=v=>(/^[=+\\-@\\t\\r]/.test(v)?"'":'')+v;
  const text=rows.map(r=>r.map(v=>'"'+cell(String(v)).replaceAll('"','""')+'"').join(',')).join('\\n')+'\\n';
  const link=document.createElement('a');
  link.href=URL.createObjectURL(new Blob([text],{type:'text/csv'}));link.download='scores.csv';link.click();
}
document.getElementById('save').onclick=save;"""


def choose(store: PairStore, count: int, seed: int = 0) -> list[int]:
    """Choose pairs to be labelled, spread over the kinds, in an order that does not reveal the kind."""
    rng = np.random.default_rng(seed)
    by_kind: dict[str, list[int]] = {}
    for number in rng.permutation(len(store)).tolist():
        by_kind.setdefault(store.kinds[number], []).append(number)
    turns = [
        numbers[turn]
        for turn in range(max(map(len, by_kind.values())))
        for numbers in by_kind.values()
        if turn < len(numbers)
    ]
    return rng.permutation(turns[:count]).tolist()


def write_sheet(store: PairStore, numbers: Sequence[int], folder: Path) -> None:
    """Write a page with the videos and the rubric, and an empty table, into a new folder. It shows no scores.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError("already exists", where=str(folder), remedy="choose another place")
    pairs = [store.read(number) for number in numbers]
    page = _page(pairs)  # everything that can fail is done first
    folder.mkdir(parents=True)
    with (folder / TABLE_NAME).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for pair in pairs:
            writer.writerow([as_text(pair.pair_id), as_text(pair.instruction), *[""] * len(DIMENSIONS)])
    (folder / PAGE_NAME).write_text(page, encoding="utf-8")


def as_text(cell: str) -> str:
    """A cell that spreadsheets do not read as a formula: text that begins like a formula gets a leading apostrophe."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def read_table(path: Path, known: Sequence[str]) -> dict[str, np.ndarray]:
    """Read scores float32 [6] by pair id from a filled-in table. Rows without any score are left out.

    Args:
        path: the CSV file.
        known: pair ids that may occur.

    Raises:
        UserError: a column, dimension or pair is missing, or a score is out of range; it names row and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot be read ({error})", where=str(path)) from error
    header = rows[0] if rows else []
    for column in ("pair_id", *names()):
        if column not in header:
            raise UserError(f"column '{column}' is missing", where=str(path))
    ids, scores = set(known), {}
    marked = {as_text(name): name for name in known}
    for number, values in enumerate(rows[1:], 2):
        row = dict(zip(header, values, strict=False))
        where = f"{path} row {number}"
        cells = [row.get(name, "").strip() for name in names()]
        if not any(cells):
            continue
        pair_id = marked.get(row["pair_id"], row["pair_id"])
        if pair_id not in ids:
            raise UserError(f"column 'pair_id': no pair '{pair_id}' in the store", where=where)
        if pair_id in scores:
            raise UserError(f"column 'pair_id': '{pair_id}' occurs twice", where=where)
        scores[pair_id] = _scores(cells, where)
    if not scores:
        raise UserError("no row is filled in", where=str(path))
    return scores


def _scores(cells: Sequence[str], where: str) -> np.ndarray:
    values = []
    for dimension, cell in zip(DIMENSIONS, cells, strict=True):
        if not cell:
            raise UserError(
                f"column '{dimension.name}' is empty", where=where, remedy="give all six, or none"
            )
        try:
            value = float(cell.replace(",", "."))
        except ValueError:
            raise UserError(f"column '{dimension.name}' is '{cell}', not a number", where=where) from None
        if not 0 <= value <= dimension.maximum:
            raise UserError(
                f"column '{dimension.name}' is {value:g}, not within 0 to {dimension.maximum}", where=where
            )
        values.append(value)
    return np.array(values, dtype=np.float32)


def annotated(store: PairStore, scores: Mapping[str, np.ndarray], annotator: str) -> Iterator[JudgedPair]:
    """The scored pairs with the new scores; the previous scores are kept in the provenance."""
    for pair_id, points in scores.items():
        pair = store.read(pair_id)
        before = {"annotator": pair.annotator, "scores": pair.scores.tolist()}
        about = dict(pair.provenance) | {"before": before}
        yield replace(pair, scores=points, annotator=annotator, provenance=about)


def _page(pairs: Sequence[JudgedPair]) -> str:
    script = _SCRIPT.replace("COLUMNS", json.dumps(COLUMNS))
    # The page can run only its own script, even if an instruction or an id contains HTML.
    policy = (
        f"default-src 'none'; media-src data:; style-src 'sha256-{_digest(_STYLE)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        f"<!doctype html><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Judge these videos</title><style>{_STYLE}</style>"
        f"<h1>Judge these videos</h1>{_rubric()}{''.join(map(_section, pairs))}"
        f"<p><button id='save'>Save scores.csv</button></p><script>{script}</script>\n"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rubric() -> str:
    entries = "".join(
        f"<dt>{dimension.title} (0 to {dimension.maximum})</dt>"
        + "".join(f"<dd>{score}: {html.escape(text)}</dd>" for score, text in dimension.levels.items())
        for dimension in DIMENSIONS
    )
    return f"<details open><summary>The rubric</summary><dl>{entries}</dl></details>"


def _section(pair: JudgedPair) -> str:
    scale = max(1, round(_SHOWN_PIXELS / pair.frames.shape[1]))
    video = base64.b64encode(encode_browser_video(pair.frames, pair.fps, scale=scale)).decode("ascii")
    fields = "".join(
        f"<label>{dimension.title}<input type='number' min='0' max='{dimension.maximum}' step='0.5'></label>"
        for dimension in DIMENSIONS
    )
    instruction = html.escape(pair.instruction, quote=True)
    return (
        f'<section data-pair="{html.escape(pair.pair_id, quote=True)}" data-instruction="{instruction}">'
        f"<video controls loop muted autoplay src='data:video/mp4;base64,{video}'></video>"
        f"<div><p><b>{instruction}</b></p>{fields}</div></section>"
    )
