"""The two distances that progress is measured by, and the cost that they make."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DISTANCES = ("object_target", "hand_object")
LABELS = ("object_position", "target_position", "gripper_position")
OBJECT_WEIGHT, HAND_WEIGHT = 3.0, 1.0


def distances(labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Object to target and hand to object in metres, float32 [..., 2], of labels [..., 3]; NaN where one is unknown.

    Raises:
        KeyError: a label of `LABELS` is missing.
    """
    thing, target, hand = (np.asarray(labels[name], np.float64) for name in LABELS)
    pairs = (thing - target, hand - thing)
    return np.stack([np.linalg.norm(pair, axis=-1) for pair in pairs], axis=-1).astype(np.float32)


def progress_cost(pairs: np.ndarray) -> np.ndarray:
    """3 · object–target + hand–object, float64 [...], of distances [..., 2]."""
    return np.asarray(pairs, np.float64) @ np.array([OBJECT_WEIGHT, HAND_WEIGHT])
