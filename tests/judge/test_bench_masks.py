"""Projection against a camera built another way; masks on made clips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.judge.bench.masks import inpaint, project, scene_masks

CAMERA = {"lookat": [0.0, 0.68, 0.08], "distance": 1.05, "azimuth": 135.0, "elevation": -30.0}


def reference_pixel(point: np.ndarray, camera: dict, height: int, width: int) -> tuple[float, float]:
    """Pinhole camera by rotation matrices about the vertical, then about the camera's own sideways axis."""
    a, e = np.radians(camera["azimuth"]), np.radians(camera["elevation"])
    turn = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[np.cos(e), 0, np.sin(e)], [0, 1, 0], [-np.sin(e), 0, np.cos(e)]])
    ahead, left, up = tilt @ turn @ (point - np.array(camera["lookat"]))
    focal = height / 2 / np.tan(np.radians(22.5))
    depth = ahead + camera["distance"]
    return (height - 1) / 2 - focal * up / depth, (width - 1) / 2 - focal * left / depth


@settings(deadline=None)
@given(
    point=st.tuples(st.floats(-0.3, 0.3), st.floats(0.4, 0.9), st.floats(0, 0.3)),
    azimuth=st.floats(-180, 180),
    elevation=st.floats(-80, 80),
)
def test_projection_is_that_of_a_pinhole_camera(point, azimuth: float, elevation: float) -> None:
    camera = CAMERA | {"azimuth": azimuth, "elevation": elevation}
    row, column, _ = project(np.array(point), camera, 48, 64)
    assert np.allclose((row, column), reference_pixel(np.array(point), camera, 48, 64))


def test_the_camera_looks_at_its_point() -> None:
    row, column, scale = project(np.array(CAMERA["lookat"]), CAMERA, 64, 64)
    assert (row, column) == pytest.approx((31.5, 31.5))
    assert scale == pytest.approx(32 / np.tan(np.radians(22.5)) / 1.05)


def test_masks_follow_the_poses() -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    centre = np.array(CAMERA["lookat"])
    labels = {
        "object_position": np.stack([centre, centre, centre + np.array([0, 0, 0.1])]),
        "gripper_position": np.stack([centre + np.array([0, 0, 0.2])] * 3),
    }
    masks = scene_masks(frames, labels, CAMERA)
    assert masks.origin == "poses"
    assert masks.object[0, 31, 31]
    assert np.array_equal(masks.object[0], masks.object[1])
    assert np.argwhere(masks.object[2])[:, 0].mean() < 28  # up in the world is up in the picture
    area = np.pi * (0.05 * project(centre, CAMERA, 64, 64)[2]) ** 2
    assert masks.object[0].sum() == pytest.approx(area, rel=0.1)


def test_motion_tells_where_no_poses_are() -> None:
    frames = np.full((12, 32, 32, 3), 90, np.uint8)
    for t in range(12):
        frames[t, 2:6, 2 * t : 2 * t + 4] = 230  # sweeps through
        frames[t, 20:24, 8 + (10 if t >= 6 else 0) :][:, :4] = 20  # displaced for good
    masks = scene_masks(frames, None, None)
    assert masks.origin == "motion"
    assert masks.gripper[5, 3, 11]
    assert masks.object[0, 21, 9]
    assert masks.object[0, 21, 19]
    assert not masks.object[0, 10:18].any()
    assert scene_masks(frames[:1].repeat(12, axis=0), None, None).object is None


def test_inpainting_fills_from_around() -> None:
    ramp = np.broadcast_to(np.arange(0, 160, 5, dtype=np.uint8)[None, None, :, None], (2, 32, 32, 3)).copy()
    hole = np.zeros((2, 32, 32), bool)
    hole[:, 12:18, 12:18] = True
    spoiled = ramp.copy()
    spoiled[hole] = 255
    filled = inpaint(spoiled, hole)
    assert np.array_equal(filled[~hole], ramp[~hole])
    assert np.abs(filled.astype(int) - ramp).max() <= 4  # a ramp is its own harmonic filling
