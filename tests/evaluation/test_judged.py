"""Scores by the rubric: means that leave failures out, changes in pairs, and what the report shows of them."""

from __future__ import annotations

import numpy as np
import pytest

from roboalign_ray.evaluation.judge_scores import JudgedResult, compare_judged, judged_table
from roboalign_ray.judge.rubric import DIMENSIONS, maxima


def scores(share: float, windows: int = 6, samples: int = 2) -> np.ndarray:
    return np.broadcast_to(share * maxima(), (windows, samples, len(DIMENSIONS))).astype(np.float64).copy()


def test_means_leave_out_what_has_no_score() -> None:
    given = scores(1.0)
    given[0, 0] = np.nan  # one sample of window 0
    given[0, 1] *= 0.5
    given[1] = np.nan  # window 1 has none
    result = JudgedResult("judge", given)
    totals = result.per_window()
    assert totals[0] == pytest.approx(5.0)
    assert np.isnan(totals[1])
    np.testing.assert_allclose(totals[2:], 10.0)
    np.testing.assert_allclose(result.per_window(0)[2:], 3.0)
    assert result.failed == 3


def test_a_change_is_taken_window_by_window() -> None:
    rng = np.random.default_rng(0)
    before = scores(0.5) * rng.uniform(0.2, 1.0, (6, 1, 1))
    after = before + 0.1
    change = compare_judged(JudgedResult("a", before), JudgedResult("a", after))
    # Windows differ much, the change not at all: paired, its interval has no width.
    assert change.difference.mean == pytest.approx(0.6)
    assert change.difference.high - change.difference.low == pytest.approx(0.0, abs=1e-9)
    assert change.wins == 1.0


def test_a_change_counts_episodes_not_their_windows() -> None:
    rng = np.random.default_rng(1)
    before, after = scores(0.5, 8), scores(0.5, 8) + rng.uniform(-0.1, 0.2, (8, 1, 1))
    names = tuple(map(str, range(8)))
    once = compare_judged(JudgedResult("a", before, names), JudgedResult("a", after, names)).difference
    twice = [JudgedResult("a", np.tile(one, (2, 1, 1)), names * 2) for one in (before, after)]
    again = compare_judged(*twice).difference
    assert (again.low, again.high) == pytest.approx((once.low, once.high))


def test_the_table_has_a_row_per_dimension_and_the_total() -> None:
    before = {"student": JudgedResult("student", scores(0.5)), "privileged": JudgedResult("p", scores(0.4))}
    after = {"student": JudgedResult("student", scores(0.6)), "privileged": JudgedResult("p", scores(0.2))}
    table = judged_table(before, after, title="Scores")
    assert len(table.rows) == len(DIMENSIONS) + 1
    total = table.rows[-1]
    assert total[0] == "Total /10"
    assert total[1:3] == pytest.approx([5.0, 6.0])
    assert str(total[3]).startswith("+1.000 [")
    assert total[4:6] == pytest.approx([4.0, 2.0])
    assert str(total[6]).startswith("-2.000 [")
    assert len(table.columns) == len(table.digits or ()) == len(total)
