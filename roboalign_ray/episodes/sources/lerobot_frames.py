"""Frames of LeRobot views: a stretch of a video, or pictures inside the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.lerobot_entries import Clip
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import raise_if_host

_MOST_PICTURE_BYTES = 64 << 20


def video_frames(folder: DatasetFolder, clip: Clip, fps: float, length: int) -> np.ndarray:
    """Frames of one view of an episode, from its video.

    Args:
        folder: the dataset's.
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
        folder.file(clip.file, "video file"),
        start_seconds=None if clip.start is None else max(0.0, clip.start - early),
        end_seconds=None if clip.end is None else clip.end - early,
    )
    if len(frames) != length:
        raise EpisodeError(f"{len(frames)} frames for {length} rows", where=clip.file)
    return frames


def table_pictures(folder: DatasetFolder, rows: pa.Table, key: str, where: str) -> np.ndarray:
    """Pictures of a column: {"bytes", "path"} as Hugging Face datasets writes them, bytes alone, or a path alone.

    Paths are relative to the dataset's folder.

    Returns:
        uint8 [T, H, W, 3].

    Raises:
        EpisodeError: a picture is missing, lies outside the folder, cannot be decoded, or has another size.
    """
    if key not in rows.column_names:
        raise EpisodeError(f"column '{key}' of pictures is missing", where=where)
    frames: list[np.ndarray] = []
    for row, cell in enumerate(rows[key]):
        picture = decode_picture(_encoded(folder, cell.as_py(), key, row, where), f"{key}[{row}]")
        if frames and picture.shape != frames[0].shape:
            raise EpisodeError(f"picture {key}[{row}] has another size than the first one", where=where)
        frames.append(picture)
    return np.stack(frames)


def _encoded(folder: DatasetFolder, cell: Any, key: str, row: int, where: str) -> bytes:
    """The bytes of one picture, from the table or from the file that it names."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, str):
        content, path = None, content
    if isinstance(content, bytes) and content:
        return content
    if not isinstance(path, str) or not path:
        said = "neither bytes nor a path" if cell is None or isinstance(cell, dict) else type(cell).__name__
        raise EpisodeError(f"picture {key}[{row}] is {said}", where=where)
    try:
        return read_small(folder.file(path, "picture"), _MOST_PICTURE_BYTES)
    except EpisodeError as error:
        raise EpisodeError(
            f"picture {key}[{row}] is stored by its path alone: {error.what}",
            where=path,
            remedy="put the pictures at that place in the dataset's folder, or into the table",
        ) from error
    except (OSError, ValueError) as error:
        raise_if_host(error, where=path)
        raise EpisodeError(f"picture {key}[{row}] cannot be read ({error})", where=path) from error
