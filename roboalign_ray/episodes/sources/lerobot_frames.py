"""Frames of LeRobot views that are stored as pictures, inside the table or in files."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.shaping import FrameCollector, Kept, Shaping
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.foundation.failures import raise_if_host

_MOST_PICTURE_BYTES = 64 << 20


def table_pictures(folder: DatasetFolder, rows: pa.Table, key: str, where: str, shaping: Shaping) -> Kept:
    """Pictures of a column: {"bytes", "path"} as Hugging Face datasets writes them, only bytes, or only a path.

    Paths are relative to the dataset's folder.

    Args:
        shaping: which frames are kept.

    Raises:
        EpisodeError: a picture is missing, is outside the folder, cannot be decoded, or has another size.
    """
    if key not in rows.column_names:
        raise EpisodeError(f"column '{key}' of pictures is missing", where=where)
    pictures = FrameCollector(shaping, rows.num_rows, where=f"{where}: {key}")
    for row, cell in enumerate(rows[key]):
        pictures.add(decode_picture(_encoded(folder, cell.as_py(), key, row, where), f"{key}[{row}]"))
    return pictures.done()


def _encoded(folder: DatasetFolder, cell: Any, key: str, row: int, where: str) -> bytes:
    """The bytes of one picture, from the table or from its file."""
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
