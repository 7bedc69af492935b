"""Decodes the videos of an episode store: by PyAV, or by OpenCV on machines that have no PyAV.

GPU images often have OpenCV and no PyAV. A store is then still readable, and frames differ by the rounding of the
colour conversion. Videos from elsewhere are always read through `video_container`, whose limits OpenCV cannot keep.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import UserError


def decode_stored_video(video: bytes, *, most_pixels: int) -> np.ndarray:
    """Every frame uint8 [T, H, W, 3] RGB of an mp4 that `encode_video` wrote.

    Args:
        most_pixels: limit on all frames together.

    Raises:
        EpisodeError: the video is damaged or too large.
        UserError: neither PyAV nor OpenCV is installed.
    """
    try:
        from roboalign_ray.episodes.video import decode_video
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        return decode_by_opencv(video, most_pixels=most_pixels)
    return decode_video(video, most_pixels=most_pixels)


def decode_by_opencv(video: bytes, *, most_pixels: int) -> np.ndarray:
    """As `decode_stored_video`, by OpenCV, which reads files only."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        remedy = "run 'pip install av'"
        raise UserError(
            "neither PyAV nor OpenCV is installed", where="episode store", remedy=remedy
        ) from error

    frames: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(prefix="roboalign_video_") as folder:
        path = Path(folder) / "video.mp4"
        path.write_bytes(video)
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        try:
            count = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            while (read := capture.read())[0]:
                frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
                if len(frames) * frames[0].shape[0] * frames[0].shape[1] > most_pixels:
                    raise EpisodeError(f"its frames have more than {most_pixels} pixels", where="video")
        finally:
            capture.release()
    if not frames or len(frames) < count:
        raise EpisodeError(f"video is truncated: {len(frames)} of {count} frames decode", where="video")
    return np.stack(frames)
