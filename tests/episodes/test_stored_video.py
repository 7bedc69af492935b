"""Videos of a store, read by OpenCV where PyAV is missing, against PyAV."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.stored_video import decode_by_opencv
from roboalign_ray.episodes.video import decode_video, encode_video

# Colours of saturated squares that another matrix or another order of channels would change by dozens.
COLOURS = ((230, 30, 40), (30, 210, 60), (40, 50, 220), (240, 230, 20), (128, 128, 128))
WITHOUT_PYAV = """
import sys
sys.modules["av"] = None
from roboalign_ray.episodes.store import open_store
episode = open_store("shipped").read(0)
print(episode.length, *[round(float(frames.mean()), 2) for frames in episode.frames.values()])
"""


def coloured(frames=len(COLOURS)):
    clip = np.full((frames, 64, 48, 3), 90, np.uint8)
    for number in range(frames):
        clip[number, 16:48, 8:40] = COLOURS[number]
    return clip


@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuv420p"])
def test_opencv_gives_the_frames_that_pyav_gives(pixel_format):
    video = encode_video(coloured(), 5.0, crf=10, pixel_format=pixel_format)
    ours, theirs = decode_by_opencv(video, most_pixels=2**20), decode_video(video)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    inside = np.s_[:, 20:44, 12:36]  # the two differ in how they enlarge colours at edges
    assert np.abs(ours[inside].astype(int) - theirs[inside]).max() <= 3


def test_opencv_refuses_damaged_and_large_videos():
    video = encode_video(coloured(), 5.0)
    with pytest.raises(EpisodeError, match="truncated"):
        decode_by_opencv(b"\0" * 2000, most_pixels=2**20)
    with pytest.raises(EpisodeError, match="more than 6144 pixels"):
        decode_by_opencv(video, most_pixels=2 * 64 * 48)


def test_a_store_is_read_without_pyav():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYAV], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    episode = open_store("shipped").read(0)
    assert int(found[0]) == episode.length
    for mean, frames in zip(found[1:], episode.frames.values(), strict=True):
        assert float(mean) == pytest.approx(frames.mean(), abs=1.5)
