"""Calibration against SciPy's isotonic regression and NumPy's least squares, and what must hold for any fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.student.calibration import (
    Calibration,
    calibration_error,
    fit_calibration,
    pool_adjacent_violators,
)

VALUES = st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_pooling_is_isotonic_regression(pairs) -> None:
    values, weights = np.array(pairs, float).T
    expected = isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(pool_adjacent_violators(values, weights), expected, atol=1e-9)


def made(seed: int = 0, pairs: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and shares that bend and shift them."""
    rng = np.random.default_rng(seed)
    labels = rng.random((pairs, 6))
    return 0.2 + 0.5 * labels**2 + rng.normal(0, 0.02, labels.shape), labels


def test_isotonic_at_its_own_points_is_scipys_fit() -> None:
    shares, labels = made()
    fitted = fit_calibration(shares, labels).apply(shares)
    for k in range(6):
        order = np.argsort(shares[:, k])
        expected = isotonic_regression(labels[order, k]).x
        np.testing.assert_allclose(fitted[order, k], expected, atol=1e-9)


def test_affine_is_least_squares() -> None:
    shares, labels = made()
    fitted = fit_calibration(shares, labels, method="affine").apply(shares)
    for k in range(6):
        slope, offset = np.polyfit(shares[:, k], labels[:, k], 1)
        np.testing.assert_allclose(fitted[:, k], slope * shares[:, k] + offset, atol=1e-9)


@pytest.mark.parametrize("method", ["isotonic", "affine"])
def test_it_helps_on_pairs_it_was_not_fitted_on(method) -> None:
    calibration = fit_calibration(*made(0), method=method)
    shares, labels = made(1)
    better = calibration_error(calibration.apply(shares), labels)
    assert (better < 0.5 * calibration_error(shares, labels)).all()


def test_order_never_turns_and_no_method_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    shares, labels = rng.random((50, 6)), rng.random((50, 6))
    grid = np.linspace(-0.5, 1.5, 101)[:, None] * np.ones(6)
    for method in ("isotonic", "affine"):
        applied = fit_calibration(shares, 1 - shares if method == "affine" else labels, method=method).apply(
            grid
        )
        assert (np.diff(applied, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(fit_calibration(shares, labels, method="none").apply(grid), grid, atol=1e-12)


def test_predicted_spread_is_scaled_to_the_errors() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((4000, 6))
    shares = labels + rng.normal(0, 0.1, labels.shape)
    told = np.full_like(shares, 0.05)  # half of what it should be
    calibration = fit_calibration(shares, labels, told, method="none")
    np.testing.assert_allclose(calibration.apply_std(told), 0.1, rtol=0.05)


def test_calibration_error_of_a_constant_shift_is_the_shift() -> None:
    labels = np.random.default_rng(0).random((100, 6))
    np.testing.assert_allclose(calibration_error(labels + 0.07, labels), 0.07)
    np.testing.assert_allclose(calibration_error(labels, labels), 0, atol=1e-12)


def test_it_survives_json_and_keeps_failures() -> None:
    calibration = fit_calibration(*made(), np.full((300, 6), 0.1))
    again = Calibration.from_json(json.loads(json.dumps(calibration.as_json())))
    shares = np.vstack([made(2)[0][:20], np.full(6, np.nan)])
    np.testing.assert_array_equal(again.apply(shares), calibration.apply(shares))
    np.testing.assert_array_equal(again.apply_std(shares), calibration.apply_std(shares))
    assert np.isnan(again.apply(shares)[-1]).all()


def test_too_few_pairs_and_missing_values_are_refused() -> None:
    shares, labels = made()
    with pytest.raises(UserError, match="too few"):
        fit_calibration(shares[:5], labels[:5])
    shares[0, 0] = np.nan
    with pytest.raises(UserError, match="finite"):
        fit_calibration(shares, labels)
