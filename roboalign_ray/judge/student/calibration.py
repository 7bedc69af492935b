"""Calibration: what the student says mapped to what such videos were given, dimension by dimension.

Fitted on held-out pairs, kept with the student. Isotonic calibration (pool adjacent violators; Barlow et al., 1972) is
any non-decreasing map; between its knots it is linear. A score alone orders samples, a calibrated one can be added to
others and compared across versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import names

Method = Literal["isotonic", "affine", "none"]
_LEAST_PAIRS = 10
_LARGEST_SLOPE = 4.0  # an affine map steeper than this amplifies noise: few pairs, or hardly any spread
_STD_FACTORS = (0.2, 5.0)


def pool_adjacent_violators(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` in weighted least squares: float64 [N]."""
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (m1, w1, n1), (m2, w2, n2) = blocks[-2:]
            blocks[-2:] = [[(m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2]]
    return np.concatenate([np.full(int(n), mean) for mean, _, n in blocks]) if blocks else np.empty(0)


@dataclass(frozen=True)
class Calibration:
    """Monotone piecewise-linear maps on shares of the maxima, one per dimension.

    Attributes:
        knots: per dimension (x, y), float64 [K] each, both non-decreasing; flat outside.
        std_factors: float64 [6], what predicted standard deviations are multiplied by so that they match the errors.
        method: how it was fitted.
        pairs: labelled pairs behind it.
    """

    knots: tuple[tuple[np.ndarray, np.ndarray], ...]
    std_factors: np.ndarray
    method: Method
    pairs: int

    def apply(self, shares: np.ndarray) -> np.ndarray:
        """Shares [B, 6] to calibrated shares [B, 6]; NaN stays NaN."""
        columns = [np.interp(shares[:, k], x, y) for k, (x, y) in enumerate(self.knots)]
        return np.where(np.isnan(shares), np.nan, np.stack(columns, axis=1))

    def apply_std(self, std: np.ndarray) -> np.ndarray:
        """Standard deviations [B, 6] in shares, rescaled."""
        return std * self.std_factors

    def as_json(self) -> dict[str, Any]:
        """JSON types only; `from_json` takes it back."""
        return {
            "method": self.method,
            "pairs": self.pairs,
            "std_factors": self.std_factors.tolist(),
            "knots": {
                name: [x.tolist(), y.tolist()] for name, (x, y) in zip(names(), self.knots, strict=True)
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """What `as_json` gave.

        Raises:
            KeyError: a dimension is missing.
        """
        knots = tuple(
            (np.asarray(content["knots"][name][0], float), np.asarray(content["knots"][name][1], float))
            for name in names()
        )
        return cls(knots, np.asarray(content["std_factors"], float), content["method"], int(content["pairs"]))


def fit_calibration(
    shares: np.ndarray, labels: np.ndarray, std: np.ndarray | None = None, method: Method = "isotonic"
) -> Calibration:
    """Fit on held-out pairs.

    Args:
        shares: float [N, 6], the student's raw shares.
        labels: float [N, 6], the labels' shares.
        std: float [N, 6], its predicted standard deviations in shares; None leaves them as they are.

    Raises:
        UserError: too few pairs, or values that are not finite.
    """
    shares, labels = np.asarray(shares, np.float64), np.asarray(labels, np.float64)
    if shares.shape != labels.shape or shares.ndim != 2 or shares.shape[1] != len(names()):
        raise ValueError(f"shares are {shares.shape}, labels {labels.shape}, not [N, {len(names())}] both")
    if method != "none" and len(shares) < _LEAST_PAIRS:
        raise UserError(
            f"{len(shares)} held-out pairs are too few",
            where="calibration",
            remedy=f"give {_LEAST_PAIRS} or more, or set judge.distillation.calibration=none",
        )
    if not (np.isfinite(shares).all() and np.isfinite(labels).all()):
        raise UserError("a score is not a finite number", where="calibration")
    fit = {"isotonic": _isotonic, "affine": _affine, "none": _identity}[method]
    knots = tuple(fit(shares[:, k], labels[:, k]) for k in range(len(names())))
    plain = Calibration(knots, np.ones(len(names())), method, len(shares))
    if std is None:
        return plain
    errors = np.sqrt(np.mean((plain.apply(shares) - labels) ** 2, axis=0))
    expected = np.sqrt(np.mean(np.asarray(std, np.float64) ** 2, axis=0))
    factors = (errors / np.maximum(expected, 1e-6)).clip(*_STD_FACTORS)
    return Calibration(knots, factors, method, len(shares))


def calibration_error(shares: np.ndarray, labels: np.ndarray, bins: int = 10) -> np.ndarray:
    """Mean over equally filled bins of |mean score - mean label|, weighted by pairs: float64 [6], in shares.

    The regression form of the expected calibration error.
    """
    errors = []
    for column, truth in zip(np.asarray(shares).T, np.asarray(labels).T, strict=True):
        order = np.argsort(column, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
        errors.append(sum(len(p) * abs(column[p].mean() - truth[p].mean()) for p in parts) / len(column))
    return np.asarray(errors)


def _isotonic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=y) / counts
    fitted = pool_adjacent_violators(means, counts)
    # Inside a flat stretch only its two ends matter to linear interpolation.
    inner = np.zeros(len(places), bool)
    inner[1:-1] = (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:])
    return places[~inner], fitted[~inner]


def _affine(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    variance = x.var()
    slope = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance > 1e-12 else 0.0
    slope = float(np.clip(slope, 0.0, _LARGEST_SLOPE))
    ends = np.array([min(0.0, x.min()), max(1.0, x.max())])
    return ends, y.mean() + slope * (ends - x.mean())


def _identity(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = np.array([min(0.0, x.min()) - 1, max(1.0, x.max()) + 1])
    return ends, ends.copy()
