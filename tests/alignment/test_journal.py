"""A journal is read as it was written, and a score that is another one is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.records.journal import JournalGroup, Verdict, compare_scores, read_journal
from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.rewards.protocol import Scored

RECORD = GroupRecord(
    "toy/01@3",
    (11, 12, 13),
    (4, 5),
    (Scored(0.5, {"ssim": 0.75, "lpips": 0.25}, 2), Failed("no such frame", "decode"), Scored(0.25, {}, 2)),
    240,
    0.1,
    (8, 9),
)


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(number=9, record=RECORD):
    return {"update": 5, "group": number, **record.as_json()}


def test_what_was_written_is_read(tmp_path):
    failed = {
        "update": 5,
        "group": 7,
        "prompt": "toy/00@1",
        "attempt": 1,
        "failed": "lost",
        "kind": "worker_lost",
    }
    path = written(tmp_path / "journal", [line(), failed, line(8, replace(RECORD, together=()))])
    with path.open("a") as file:
        file.write('{"update": 6, "gro')
    first, second = read_journal(path)
    assert (first.group, first.update, first.prompt) == (9, 5, "toy/01@3")
    assert (first.seeds, first.versions, first.together) == ((11, 12, 13), (4, 5), (8, 9))
    assert first.scores[0] == {"total": 0.5, "ssim": 0.75, "lpips": 0.25, "scorer_version": 2}
    assert first.scorers == {2}
    assert second.together == (8,)  # of a run that did not say


def test_no_journal_and_a_damaged_one_are_told(tmp_path):
    with pytest.raises(UserError, match="no journal of a run"):
        read_journal(tmp_path / "journal")
    path = tmp_path / "journal"
    path.write_text("what\n" + json.dumps(line()) + "\n")
    with pytest.raises(UserError, match="journal:1: cannot be read as journal line"):
        read_journal(path)


@pytest.mark.parametrize("number", ["1e999", "NaN", '"x"', "null"])
def test_a_number_that_is_none_is_told(tmp_path, number):
    path = tmp_path / "journal"
    path.write_text(
        json.dumps(line()).replace('"group": 9', f'"group": {number}') + "\n" + json.dumps(line()) + "\n"
    )
    with pytest.raises(UserError, match="is no line of a journal"):
        read_journal(path)


def of(scores) -> JournalGroup:
    return JournalGroup(0, 0, "p", tuple(range(len(scores))), (0,), tuple(scores), (0,))


scores = st.lists(
    st.builds(lambda total, part: {"total": total, "part": part}, st.floats(), st.floats())
    | st.just({"failed": "why", "kind": "nan"}),
    min_size=1,
    max_size=5,
)


@given(scores, st.floats(0, 1))
def test_the_same_scores_are_equal(scores, tolerance):
    again = json.loads(json.dumps(scores))
    found = compare_scores(of(scores), again, tolerance)
    assert (found.verdict, found.difference) == (Verdict.EQUAL, 0.0)


@given(scores, st.data())
def test_one_figure_that_moved_decides(scores, data):
    place = data.draw(st.sampled_from([n for n, s in enumerate(scores) if "failed" not in s] or [-1]))
    if place < 0:
        return
    scores[place] = {"total": 0.5, "part": 0.25}
    for moved, verdict in ((1e-6, Verdict.CLOSE), (1e-3, Verdict.DIFFERS), (math.nan, Verdict.DIFFERS)):
        now = [dict(score) for score in scores]
        now[place]["part"] = 0.25 + moved
        assert compare_scores(of(scores), now, 1e-5).verdict is verdict


def test_failures_and_successes_are_never_alike():
    good, bad, late = {"total": 0.0}, {"failed": "a", "kind": "nan"}, {"failed": "b", "kind": "timeout"}
    for before, after in ((good, bad), (bad, good), (bad, late), (good, {"total": 0.0, "part": 1.0})):
        found = compare_scores(of([before]), [after], 1.0)
        assert found.verdict is Verdict.DIFFERS
        assert "sample 0" in found.why
        assert np.isnan(found.difference)
    assert compare_scores(of([bad]), [{"failed": "other words", "kind": "nan"}], 0).verdict is Verdict.EQUAL
    assert compare_scores(of([good]), [good, good], 0).verdict is Verdict.DIFFERS
