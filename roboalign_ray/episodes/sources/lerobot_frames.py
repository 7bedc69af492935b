"""Frames of LeRobot views: a stretch of a video, or pictures inside the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.lerobot_entries import Clip
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.episodes.video import decode_video


def video_frames(root: Path, clip: Clip, fps: float, length: int) -> np.ndarray:
    """Frames of one view of an episode, from its video.

    Args:
        root: the dataset's folder.
        clip: file and seconds within it.
        fps: frames per second of the dataset.
        length: rows of the episode; as many frames must come.

    Returns:
        uint8 [length, H, W, 3].

    Raises:
        EpisodeError: it does not decode, or to another number of frames.
    """
    # A quarter of a frame early, so that timestamps rounded by the container fall on the right side.
    early = 0.25 / fps
    frames = decode_video(
        root / clip.file,
        start_seconds=None if clip.start is None else max(0.0, clip.start - early),
        end_seconds=None if clip.end is None else clip.end - early,
    )
    if len(frames) != length:
        raise EpisodeError(f"{len(frames)} frames for {length} rows", where=clip.file)
    return frames


def table_pictures(rows: pa.Table, key: str, where: str) -> np.ndarray:
    """Pictures stored in the table ({"bytes", "path"}), uint8 [T, H, W, 3].

    Raises:
        EpisodeError: one is missing or cannot be decoded.
    """
    try:
        cells = [cell["bytes"] for cell in rows[key].to_pylist()]
        return np.stack([decode_picture(raw, f"{key}[{t}]") for t, raw in enumerate(cells)])
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"pictures of '{key}' cannot be decoded ({error})", where=where) from error
