"""Agreement against SciPy and by hand; failures are left out and counted."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from roboalign_ray.judge.rubric import maxima, names
from roboalign_ray.judge.validation.agreement import (
    agreement,
    agreement_table,
    mean_absolute_error,
    pairwise_accuracy,
    ranks,
    spearman,
)
from roboalign_ray.judge.validation.baselines import ConstantJudge, pixel_l1_scores

TIED = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=25)


@settings(max_examples=60, deadline=None)
@given(TIED)
def test_ranks_and_spearman_are_scipys_ties_included(pairs) -> None:
    a, b = np.array(pairs, float).T
    np.testing.assert_array_equal(ranks(a), stats.rankdata(a))
    if np.ptp(a) and np.ptp(b):
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    else:
        assert np.isnan(spearman(a, b))


@settings(max_examples=40, deadline=None)
@given(TIED)
def test_pairwise_accuracy_counts_pairs(pairs) -> None:
    points = []
    for (a1, b1), (a2, b2) in combinations(pairs, 2):
        if b1 != b2:
            points.append(0.5 if a1 == a2 else float((a1 < a2) == (b1 < b2)))
    scores, labels = np.array(pairs, float).T
    expected = np.mean(points) if points else float("nan")
    assert pairwise_accuracy(scores, labels) == pytest.approx(expected, nan_ok=True)


def judged(videos: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.random((videos, 6)) * maxima()
    return np.clip(labels + rng.normal(0, 0.2, labels.shape), 0, maxima()), labels


def test_rows_are_the_dimensions_then_the_total() -> None:
    scores, labels = judged()
    result = agreement("student", scores, labels, resamples=50)
    assert [row.dimension for row in result.rows] == [*names(), "total"]
    assert result.rows[0].mae.value == pytest.approx(mean_absolute_error(scores[:, 0], labels[:, 0]))
    assert result.rows[-1].spearman.value == pytest.approx(
        stats.spearmanr(scores.sum(1), labels.sum(1)).statistic
    )
    for row in result.rows:
        for figure in (row.spearman, row.mae, row.pairwise):
            assert figure.low <= figure.value <= figure.high
    assert agreement_table([result]).count("| student |") == 7


def test_a_failed_video_is_left_out_never_a_zero() -> None:
    scores, labels = judged()
    broken = scores.copy()
    broken[::3] = np.nan
    kept = np.arange(len(scores)) % 3 != 0
    result, expected = agreement("a", broken, labels), agreement("a", scores[kept], labels[kept])
    assert result.failed == 20
    assert [r.mae.value for r in result.rows] == [r.mae.value for r in expected.rows]


def test_whole_groups_are_resampled() -> None:
    """Copies of a video in its own group tell nothing new: the interval must be as wide as without them."""
    scores, labels = judged(20)
    copies = np.repeat(np.arange(20), 10)
    alone = agreement("a", scores, labels, resamples=200).rows[0].mae
    grouped = (
        agreement("a", scores[copies], labels[copies], [str(n) for n in copies], resamples=200).rows[0].mae
    )
    naive = agreement("a", scores[copies], labels[copies], resamples=200).rows[0].mae
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.4)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_a_constant_judge_has_no_rank_and_half_the_pairs() -> None:
    _, labels = judged()
    result = agreement("mean", ConstantJudge(labels).scores([None] * len(labels)), labels, resamples=20)
    assert all(np.isnan(row.spearman.value) and row.pairwise.value == 0.5 for row in result.rows)
    assert json.loads(json.dumps(result.as_json()))["rows"][0]["spearman"]["value"] is None


def test_pixel_distance_by_hand() -> None:
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    exact, far, missing = pixel_l1_scores([black, grey, grey], [black, black, None])
    np.testing.assert_allclose(exact, maxima())
    np.testing.assert_allclose(far, 0.8 * maxima())
    assert np.isnan(missing).all()
