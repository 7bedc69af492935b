"""The set of scores against a dictionary, its record of input and judges, its card, and what a crash leaves."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data import score_store
from roboalign_ray.judge.data.score_card import BINS, histogram, write_card
from roboalign_ray.judge.data.score_record import JudgeIdentity, ScoringRecord
from roboalign_ray.judge.data.score_store import (
    SCORES,
    SECOND,
    ScoreSet,
    final_scores,
    read_quarantine,
    score_row,
    total_std,
    write_quarantine,
)
from roboalign_ray.judge.protocol import Judgement
from roboalign_ray.judge.rubric import names

JUDGE = JudgeIdentity("student", 3, "a" * 64, {})
OTHER = JudgeIdentity("student", 4, "b" * 64, {})


def row(name: str, value: float = 1.0, judge: JudgeIdentity = JUDGE, **changes: Any) -> dict[str, Any]:
    judgement = Judgement(np.full(6, value), np.full(6, 0.1), rationale=None)
    about: dict[str, Any] = {
        "clip_id": name,
        "input_sha256": f"{value}",
        "instruction": "open it",
        "stamp": "1-2",
        "frames": 8,
        "fps": 5.0,
        "decode_seconds": 0.1,
        "seconds": 0.2,
    }
    return score_row(judgement, judge, **{**about, **changes})


def on_disk(folder: Path) -> list[tuple[str, float]]:
    """Clip and total of every row, read without the store."""
    rows = [one for path in sorted(folder.glob("part-*.parquet")) for one in pq.read_table(path).to_pylist()]
    return sorted((one["clip_id"], round(one["total"] / 6, 3)) for one in rows)


steps = st.lists(
    st.tuples(st.sampled_from(["append", "drop", "reopen"]), st.sets(st.sampled_from("abcdef"), min_size=1)),
    max_size=8,
)


@settings(max_examples=40)
@given(steps)
def test_any_order_of_changes_is_that_of_a_dictionary(steps: list[tuple[str, set[str]]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, wanted = Path(place) / "scores", dict[str, float]()
        store = ScoreSet(folder)
        for number, (what, clips) in enumerate(steps):
            if what == "append":
                store.append([row(name, number / 10) for name in sorted(clips)])
                wanted |= dict.fromkeys(clips, number / 10)
            elif what == "drop":
                known = clips & store.scored.keys()
                store.drop(known)
                wanted = {name: value for name, value in wanted.items() if name not in known}
            else:
                store = ScoreSet(folder)
            assert on_disk(folder) == sorted(wanted.items())
            assert {name: float(known.sha256) for name, known in store.scored.items()} == wanted


def test_a_crash_between_writes_leaves_a_whole_set_without_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write is the last one of some process: whatever the set then holds, no clip is in it twice."""
    store = ScoreSet(tmp_path)
    store.append([row("a"), row("b")])
    store.append([row("c")])
    real, left = score_store._write, [0]

    def dies(*arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*arguments)

    monkeypatch.setattr(score_store, "_write", dies)
    seen = []
    for writes in range(4):
        left[0] = writes
        again = ScoreSet(tmp_path)
        with suppress(KeyboardInterrupt):
            again.append([row(name, 0.5) for name in ("a", "c", "d")])
        found = [name for name, _ in on_disk(tmp_path)]
        assert len(found) == len(set(found))
        assert "b" in found
        seen.append(found)
    assert seen[-1] == ["a", "b", "c", "d"]
    assert seen[0] != seen[-1]


def test_another_input_or_another_judge_is_one_line(tmp_path: Path) -> None:
    record = ScoringRecord("/clips", "", "", [JUDGE])
    assert not record.check(tmp_path, rescore=False)
    record.write(tmp_path)
    assert not record.check(tmp_path, rescore=False)
    with pytest.raises(UserError, match=r"holds scores of input '/clips', not of '/others'"):
        replace(record, input="/others").check(tmp_path, rescore=True)
    newer = replace(record, judges=[OTHER])
    with pytest.raises(UserError, match=r"another judge .*version: 3 -> 4.*--rescore"):
        newer.check(tmp_path, rescore=False)
    assert newer.check(tmp_path, rescore=True)
    tuned = replace(record, judges=[replace(JUDGE, digest="c" * 64, settings={"frames": 4})])
    with pytest.raises(UserError, match=r"settings\.frames"):
        tuned.check(tmp_path, rescore=False)
    teacher = replace(record, judges=[replace(JUDGE, name="vlm", version=None)])
    with pytest.raises(UserError, match="student; this is vlm"):
        teacher.check(tmp_path, rescore=False)


def test_the_teachers_row_stands_for_the_clips_that_it_saw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scores here"):
        final_scores(tmp_path)
    ScoringRecord("/clips", "", "", [JUDGE, OTHER]).write(tmp_path)
    ScoreSet(tmp_path / SCORES).append([row("a", 0.1), row("b", 0.2), row("c", 0.3)])
    ScoreSet(tmp_path / SECOND).append([row("b", 0.5, OTHER)])
    table = final_scores(tmp_path)
    totals = dict(zip(table["clip_id"].to_pylist(), table["total"].to_pylist(), strict=True))
    assert totals == pytest.approx({"a": 0.6, "b": 3.0, "c": 1.8})
    np.testing.assert_allclose(total_std(table), 0.1 * np.sqrt(6), rtol=1e-6)


def test_rows_of_other_judges_are_found(tmp_path: Path) -> None:
    store = ScoreSet(tmp_path)
    store.append([row("a"), row("b", judge=OTHER)])
    assert store.of_other_judges(JUDGE) == ["b"]


def test_the_card_counts_every_score_once(tmp_path: Path) -> None:
    ScoringRecord("/clips", "", "", [JUDGE]).write(tmp_path)
    ScoreSet(tmp_path / SCORES).append([row(f"v{n}", n / 10) for n in range(11)])
    write_quarantine(tmp_path, {"bad": "torn", "worse": "empty"})
    assert read_quarantine(tmp_path) == {"bad": "torn", "worse": "empty"}
    card = write_card(tmp_path, cost="cheap")
    assert (card["clips"], card["quarantined"], card["by_judge"], card["cost"]) == (
        11,
        2,
        {"student": 11},
        "cheap",
    )
    for name in (*names(), "total"):
        assert sum(card["histograms"][name]["counts"]) == 11
        assert len(card["histograms"][name]["counts"]) == BINS
    assert card["mean"][names()[0]] == pytest.approx(0.5)


def test_a_histogram_counts_what_lies_between_its_edges() -> None:
    values = np.random.default_rng(0).uniform(0, 3, 500)
    found = histogram(values, 3)
    for low, high, count in zip(found["edges"], found["edges"][1:], found["counts"], strict=False):
        assert count == sum(low <= value < high for value in values)
    assert histogram([-1.0, 5.0], 3)["counts"] == [1, *[0] * (BINS - 2), 1]
