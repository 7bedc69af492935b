"""The toy world model as a planning environment: its square goes where actions say, so where it should be is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from toy_world_model import ToyDecoder, ToyModel, draw

from roboalign_ray.rewards.protocol import RewardInput
from roboalign_ray.world_model.refresh import RefreshPlan

BOUNDS = ([-1.0, -1.0], [1.0, 1.0])  # of the toy's two actions; the second one moves the square


def toy(views: int = 1, gain: float = 1.0, window: int = 3) -> ToyModel:
    return ToyModel(RefreshPlan(window), ToyDecoder(views), gain)


def picture(column: float, views: int = 1) -> np.ndarray:
    """Uint8 [V, H, W, 3] of the square at a column."""
    return draw(np.array([[column]]), views)[0, 0]


def columns(frames: np.ndarray) -> np.ndarray:
    """Where the square is in frames of the first view, [..., H, W, 3]: its first lit column, round the edge."""
    lit = frames[..., 0, :, 0] > 100
    return np.argmax(lit & ~np.roll(lit, 1, axis=-1), axis=-1)


def column(inputs: RewardInput) -> list[float]:
    """A reward of clips: how far right the square is in the last frame."""
    return columns(inputs.generated[:, -1, 0]).astype(float).tolist()


def moves(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 2)).astype(np.float32)


def toy_options(**changes: Any) -> dict[str, Any]:
    options = {"world_model": toy(), "image": picture(10), "action_bounds": BOUNDS, "horizon": 6}
    return {**options, **changes}


def token_options(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of the token world model and the store that `tiny_job` writes."""
    places = {"world_model": folder / "world_model", "store": folder / "store"}
    return {**places, "rollout": {"refresh": {"policy": "swr", "window": 2}}, "horizon": 6, **changes}
