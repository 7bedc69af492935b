"""A judge's pick among samples against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from roboalign_ray.judge.validation.selection import mean_known, picked, rank_within


def test_the_best_liked_sample_is_worth_what_another_says_of_it():
    points = np.array([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]])
    liked = np.array([[0.1, 0.9, np.nan], [np.nan, -5.0, -5.0]])
    assert picked(points, liked).tolist() == [2.0, 5.0]
    assert picked(np.stack([points, -points], axis=-1), liked).tolist() == [[2.0, -2.0], [5.0, -5.0]]


def test_a_judge_that_scored_no_sample_picks_none():
    found = picked(np.ones((2, 2)), np.array([[np.nan, np.nan], [0.0, 1.0]]))
    assert np.isnan(found[0])
    assert found[1] == 1.0


def test_the_most_that_a_pick_can_be_worth_is_the_expected_maximum():
    """Of n uniform samples: n / (n + 1); a judge that knows nothing gets their mean."""
    rng = np.random.default_rng(0)
    points = rng.random((20_000, 8))
    assert picked(points, points).mean() == pytest.approx(8 / 9, abs=0.002)
    assert picked(points, rng.random(points.shape)).mean() == pytest.approx(0.5, abs=0.01)


def test_ranks_are_those_of_scipy_over_the_samples_that_both_scored():
    rng = np.random.default_rng(1)
    points, liked = rng.normal(size=(2, 5, 8)).round(1)
    liked[2, :3] = np.nan
    for row, found in enumerate(rank_within(points, liked)):
        known = np.isfinite(liked[row])
        assert found == pytest.approx(spearmanr(points[row, known], liked[row, known]).statistic)


def test_too_few_samples_or_none_told_apart_have_no_rank():
    points = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    liked = np.array([[1.0, np.nan, 2.0], [7.0, 7.0, 7.0]])
    assert np.isnan(rank_within(points, liked)).all()


def test_means_are_over_what_is_known():
    values = np.array([[1.0, np.nan, 4.0], [np.nan, np.nan, np.nan]])
    assert mean_known(values)[0] == 2.5
    assert np.isnan(mean_known(values)[1])
    assert mean_known(np.stack([values, values + 1], axis=-1))[0].tolist() == [2.5, 3.5]
