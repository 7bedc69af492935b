"""Frames of LeRobot views from videos: an episode's own video, or a part of a shared video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.frame_matching import Stretch, match_frames
from roboalign_ray.episodes.shaping import MOST_EPISODE_PIXELS, Kept, Shaping
from roboalign_ray.episodes.sources.lerobot_entries import Clip, EpisodeEntry
from roboalign_ray.episodes.video_frames import FrameTimes, frame_times, read_frames

_TIME = "timestamp"


@dataclass(frozen=True)
class SharedVideos:
    """The positions of all episodes in each shared video, by file name relative to the dataset."""

    stretches: Mapping[str, tuple[Stretch, ...]]

    @classmethod
    def of(cls, entries: Iterable[EpisodeEntry]) -> SharedVideos:
        """The positions from the episode table."""
        found: dict[str, list[Stretch]] = {}
        for entry in entries:
            for clip in entry.clips.values():
                if clip.start is not None:
                    found.setdefault(clip.file, []).append(_stretch(clip, entry.length))
        return cls({file: tuple(stretches) for file, stretches in found.items()})


def video_frames(
    path: Path, clip: Clip, shared: SharedVideos, rows: pa.Table, fps: float, shaping: Shaping
) -> tuple[Kept, str]:
    """Frames of one view of an episode, from its video.

    Args:
        path: the video.
        clip: the view's position in the episode table.
        shared: the positions of all episodes in shared videos.
        rows: the episode's rows; each has one frame.
        fps: frames per second of the dataset.
        shaping: which frames are kept.

    Returns:
        the frames, and how they were found if not by time.

    Raises:
        EpisodeError: the video cannot be decoded, or it is not certain which frames belong to the rows.
    """
    length = rows.num_rows
    if clip.start is None:
        kept = read_frames(path, shaping=shaping, most_frames=length, most_pixels=MOST_EPISODE_PIXELS)
        if kept.count != length:
            raise EpisodeError(f"{kept.count} frames for {length} rows", where=clip.file)
        return kept, ""
    times = _times_of(path, path.stat().st_mtime_ns)
    own = _stretch(clip, length)
    stretches = shared.stretches.get(clip.file, (own,))
    try:
        match = match_frames(times.seconds, stretches, own, clip.start + _row_times(rows, fps), fps)
    except EpisodeError as error:
        raise EpisodeError(error.what, where=clip.file, remedy=error.remedy) from error
    wanted = replace(times, ticks=times.ticks[match.positions])
    return read_frames(path, shaping=shaping, at=wanted, most_pixels=MOST_EPISODE_PIXELS), match.note


def _stretch(clip: Clip, length: int) -> Stretch:
    assert clip.start is not None
    return Stretch(clip.start, np.inf if clip.end is None else clip.end, length)


def _row_times(rows: pa.Table, fps: float) -> np.ndarray:
    """Seconds from the episode's start, float64 [T]: its `timestamp` column, or rows at the dataset's rate."""
    if _TIME in rows.column_names:
        try:
            times = np.array(rows[_TIME].to_pylist(), np.float64).reshape(-1)
        except (TypeError, ValueError):
            times = np.empty(0)
        if len(times) == rows.num_rows and np.isfinite(times).all():
            return times
    return np.arange(rows.num_rows) / fps


@lru_cache(maxsize=8)
def _times_of(path: Path, changed_ns: int) -> FrameTimes:
    """`frame_times`, once for all episodes of a file."""
    return frame_times(path)
