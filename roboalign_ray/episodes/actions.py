"""Differences and bins of actions. `action_kinds` defines their meaning over time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import read_object

ACTION_BINS = "action_bins.json"


def unwrap_angles(values: np.ndarray, angle_dims: Sequence[int]) -> np.ndarray:
    """Remove jumps by whole turns from angles over time.

    Args:
        values: [T, A].
        angle_dims: dimensions in radians; the others do not change.

    Returns:
        float64 [T, A], consecutive angles less than half a turn apart.
    """
    out = np.array(values, dtype=np.float64)
    dims = list(angle_dims)
    if dims:
        out[:, dims] = np.unwrap(out[:, dims], axis=0)
    return out


def differences(values: np.ndarray, angle_dims: Sequence[int]) -> np.ndarray:
    """Increments from each row to the next, for angles the shorter way round; the last row is zero: a hold.

    Args:
        values: absolute positions and angles [T, A].
        angle_dims: dimensions in radians.

    Returns:
        float32 [T, A].
    """
    steps = np.diff(unwrap_angles(values, angle_dims), axis=0)
    return np.concatenate([steps, np.zeros((1, values.shape[1]))]).astype(np.float32)


@dataclass(frozen=True)
class ActionBinner:
    """Equal bins between two percentiles per dimension; values outside are in the outermost bin.

    Percentiles are used because one outlier in the extremes would squeeze all other values into a few bins.

    Attributes:
        low, high: first and last edge per dimension, A numbers; equal if the dimension never changes.
        bins: number of bins per dimension.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int

    def __post_init__(self) -> None:
        edges = np.array([self.low, self.high], dtype=np.float64)
        if len(self.low) != len(self.high) or not len(self.low) or not np.isfinite(edges).all():
            raise UserError(
                "the bins want one finite low and high edge per action dimension", where=ACTION_BINS
            )
        if (edges[0] > edges[1]).any() or self.bins < 2:
            raise UserError("the bins want low <= high and at least 2 bins", where=ACTION_BINS)

    @classmethod
    def from_card(cls, card: ActionCard, bins: int) -> ActionBinner:
        """Bins from the percentiles of an action card.

        Raises:
            UserError: the card has no statistics, for example because the train split is empty.
        """
        if card.statistics is None:
            raise UserError("no actions to take percentiles of", where="action bins")
        return cls(card.statistics.p01, card.statistics.p99, bins)

    @property
    def dims(self) -> int:
        """Number of action dimensions A."""
        return len(self.low)

    def to_bins(self, actions: np.ndarray) -> np.ndarray:
        """Bins int64 [..., A] in [0, bins) of actions [..., A].

        Raises:
            UserError: the number of dimensions is wrong, or a value is not finite.
        """
        values = np.asarray(actions, dtype=np.float64)
        if values.shape[-1] != self.dims:
            raise UserError(
                f"actions have {values.shape[-1]} dimensions, the bins {self.dims}", where="action bins"
            )
        if not np.isfinite(values).all():
            raise UserError("an action is not finite", where="action bins")
        low, width = self._edges()
        return np.clip(np.floor((values - low) / width), 0, self.bins - 1).astype(np.int64)

    def to_values(self, bins: np.ndarray) -> np.ndarray:
        """Centres float32 [..., A] of bins int [..., A]; a dimension that never changes has one value."""
        low, width = self._edges()
        constant = np.asarray(self.high) - low < np.finfo(np.float64).tiny * self.bins
        return np.where(constant, low, low + (np.asarray(bins) + 0.5) * width).astype(np.float32)

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """First edge and bin width per dimension; the width is 1 if the dimension never changes."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        # Division by a subnormal width would overflow; such a range counts as constant.
        constant = high - low < np.finfo(np.float64).tiny * self.bins
        return low, np.where(constant, 1.0, (high - low) / self.bins)

    def state_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {"low": list(self.low), "high": list(self.high), "bins": self.bins}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ActionBinner:
        """Inverse of `state_dict`."""
        return cls(tuple(map(float, state["low"])), tuple(map(float, state["high"])), int(state["bins"]))

    def save(self, folder: Path) -> None:
        """Write the bins beside the weights that were trained on them."""
        text = json.dumps(self.state_dict(), indent=1) + "\n"
        (Path(folder) / ACTION_BINS).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ActionBinner:
        """Inverse of `save`.

        Raises:
            UserError: the file is missing or invalid.
        """
        path = Path(folder) / ACTION_BINS
        if not path.is_file():
            raise UserError(
                "no action bins beside the world model", where=str(path), remedy="is it a world model?"
            )
        content = read_object(path, "action bins")
        try:
            return cls.from_state_dict(content)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"not an action bins file ({error})", where=str(path)) from error
