"""Finds the source for a folder of robot episodes: its format and its views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from roboalign_ray.episodes.shaping import WHOLE, Shaping
from roboalign_ray.episodes.sources.droid import VIEWS, DroidSource, annotation_files
from roboalign_ray.episodes.sources.extension import ExtensionSource
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.sources.rlds import RldsSource
from roboalign_ray.foundation.failures import UserError

Format = Literal["lerobot", "rlds", "droid"]
FORMATS: tuple[Format, ...] = get_args(Format)
FolderSource = LeRobotSource | RldsSource | DroidSource | ExtensionSource

_SIGNS = {
    "lerobot": "meta/info.json",
    "rlds": "features.json and *.tfrecord* shards",
    "droid": "annotation/<split>/*.json",
}


def detect_format(root: Path) -> Format:
    """The format of a folder, from the files that it must hold.

    Raises:
        UserError: there is no such folder, it is empty, or it has none of the known formats.
    """
    if not root.exists():
        raise UserError("no such folder", where=str(root), remedy="give the folder that holds the episodes")
    if not root.is_dir():
        raise UserError("is a file, not a folder of episodes", where=str(root))
    if (root / "meta" / "info.json").is_file():
        return "lerobot"
    if any(root.glob("features.json")) or any(root.glob("*/features.json")):
        return "rlds"
    if any(annotation_files(root)):
        return "droid"
    if not any(root.iterdir()):
        raise UserError("the folder is empty", where=str(root))
    signs = "; ".join(f"{name}: {sign}" for name, sign in _SIGNS.items())
    raise UserError("holds no known episode format", where=str(root), remedy=f"looked for {signs}")


def open_folder(
    root: Path,
    format: str = "auto",
    *,
    views: Sequence[str] = (),
    fps: float | None = None,
    shaping: Shaping = WHOLE,
) -> FolderSource:
    """The source of a folder.

    Args:
        root: folder of episodes.
        format: one of `FORMATS`, "auto" to detect it, or the name of another source in `SOURCES`.
        views: views to read; if empty, all are read.
        fps: frame rate of an RLDS dataset whose rate is unknown.
        shaping: which frames are kept during decoding.

    Raises:
        UserError: format or view are unknown, or the folder cannot be read in that format.
    """
    if format not in ("auto", *FORMATS):
        if fps is not None:
            raise UserError(f"episodes of {format} state their own frame rate", where="--source-fps")
        return ExtensionSource(format, root, views)
    found = detect_format(root)
    if format not in ("auto", found):
        raise UserError(
            f"is a {found} dataset, not {format}", where=str(root), remedy="leave --format out to detect it"
        )
    wanted = tuple(views) or None
    if found == "rlds":
        rlds = RldsSource(root, fps=fps, views=wanted, shaping=shaping)
        _check_views(views, rlds.view_names, root)
        return rlds
    if fps is not None:
        raise UserError(f"a {found} dataset states its own frame rate", where="--source-fps")
    if found == "droid":
        _check_views(views, VIEWS, root)
        return DroidSource(root, views=wanted, shaping=shaping)
    lerobot = LeRobotSource(root, shaping=shaping)
    _check_views(views, lerobot.view_names, root)
    return LeRobotSource(root, views=wanted, shaping=shaping) if wanted else lerobot


def _check_views(wanted: Sequence[str], known: Sequence[str], root: Path) -> None:
    for view in wanted:
        if view not in known:
            raise UserError(f"no view '{view}'", where=str(root), remedy=f"views: {', '.join(known)}")
