"""Masks of object and gripper in a clip: projected from simulator poses, or found by motion if there are no poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FIELD_OF_VIEW_DEGREES = 45.0  # vertical, of MuJoCo's free camera unless a model says otherwise
OBJECT_RADIUS_M, GRIPPER_RADIUS_M = (
    0.05,
    0.07,
)  # [ours] discs that cover Meta-World's handles, pucks and its hand
_MOVING = 24.0  # [ours] grey levels from the temporal median that count as motion
_LEAST_SHARE = 0.002  # [ours] share of the image: fewer pixels are compression noise
_INPAINT_STEPS = 40


@dataclass(frozen=True)
class SceneMasks:
    """Masks of a clip; None if they cannot be determined.

    Attributes:
        object: bool [T, H, W], the manipulated object.
        gripper: bool [T, H, W], the hand (and, when found by motion, the moving arm).
        origin: "poses" or "motion".
    """

    object: np.ndarray | None
    gripper: np.ndarray | None
    origin: str


def project(points: np.ndarray, camera: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Project world points to pixels of MuJoCo's free camera.

    Args:
        points: [..., 3] metres.
        camera: "lookat" [3], "distance" (metres), "azimuth" and "elevation" (degrees).
        height, width: image size in pixels.

    Returns:
        float64 [..., 3]: row, column (pixel centres at integers), and pixels per metre at that depth.
    """
    azimuth, elevation = np.radians(camera["azimuth"]), np.radians(camera["elevation"])
    forward = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    up = np.cross(right, forward)
    offset = np.asarray(points, dtype=np.float64) - (
        np.asarray(camera["lookat"], dtype=np.float64) - camera["distance"] * forward
    )
    depth = np.maximum(offset @ forward, 1e-3)
    scale = 0.5 * height / np.tan(np.radians(FIELD_OF_VIEW_DEGREES) / 2) / depth
    row = (height - 1) / 2 - scale * (offset @ up)
    column = (width - 1) / 2 + scale * (offset @ right)
    return np.stack([row, column, scale], axis=-1)


def scene_masks(
    frames: np.ndarray, labels: Mapping[str, np.ndarray] | None, camera: Mapping[str, Any] | None
) -> SceneMasks:
    """Masks of a clip.

    Args:
        frames: uint8 [T, H, W, 3].
        labels: simulator labels of the same frames ("object_position", "gripper_position" [T, 3]), or None.
        camera: as in `project`, or None.
    """
    known = labels is not None and {"object_position", "gripper_position"} <= set(labels)
    if labels is None or camera is None or not known:
        return _by_motion(frames)
    height, width = frames.shape[1:3]

    def discs(name: str, radius: float) -> np.ndarray:
        placed = project(np.asarray(labels[name])[:, :3], camera, height, width)
        rows, columns = np.mgrid[:height, :width]
        squared = (rows - placed[:, 0, None, None]) ** 2 + (columns - placed[:, 1, None, None]) ** 2
        return squared <= (radius * placed[:, 2, None, None]) ** 2

    gripper = discs("gripper_position", GRIPPER_RADIUS_M)
    thing = discs("object_position", OBJECT_RADIUS_M)
    return SceneMasks(_enough(thing), _enough(gripper), "poses")


def _by_motion(frames: np.ndarray) -> SceneMasks:
    """Masks by motion: moving pixels are the arm; pixels that differ from start to end are an object."""
    values = frames.astype(np.float32).mean(axis=-1)
    moving = _grown(np.abs(values - np.median(values, axis=0)) > _MOVING)
    half = max(1, len(frames) // 4)
    before, after = np.median(values[:half], axis=0), np.median(values[-half:], axis=0)
    changed = _grown((np.abs(after - before) > _MOVING)[None])[0]
    thing = np.broadcast_to(changed, moving.shape) if changed.any() else None
    return SceneMasks(_enough(thing), _enough(moving), "motion")


def _enough(mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None or mask.mean() < _LEAST_SHARE else np.ascontiguousarray(mask)


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask [T, H, W] grown by one pixel on all four sides."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    parts = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    return np.logical_or.reduce([mask, *parts])


def inpaint(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] with the masked pixels, bool [T, H, W], inpainted smoothly from their surroundings."""
    values = frames.astype(np.float32)
    weights = (~mask).astype(np.float32)[..., None]
    outside = (values * weights).sum(axis=(1, 2), keepdims=True) / np.maximum(
        weights.sum(axis=(1, 2), keepdims=True), 1
    )
    values = np.where(mask[..., None], outside, values)
    for _ in range(_INPAINT_STEPS):
        padded = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
        values = np.where(mask[..., None], around / 4, values)
    return np.where(mask[..., None], np.rint(values).astype(np.uint8), frames)
