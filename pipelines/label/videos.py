"""The videos to label: a store of pairs, a Ray Dataset of its rows, or a folder of files with their instructions.

videos/
  0001.mp4     mp4, mov, mkv, webm or avi
  0001.json    {"instruction": "…"}; also fps, group_id, method
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.generated import VIDEO_SUFFIXES, read_sidecar
from roboalign_ray.judge.data.pairs import JudgedPair, open_pairs
from roboalign_ray.judge.online.rollout_annotator import UNLABELLED
from roboalign_ray.judge.rubric import DIMENSIONS

FOLDER_FPS = 10.0  # for videos whose JSON file has no rate
_HIGHEST_FPS = 1e6


@dataclass(frozen=True)
class Unreadable:
    """A video that cannot be judged, and the reason; it replaces its pair."""

    pair_id: str
    reason: str


Item = JudgedPair | Unreadable


def items_of(source: Path, *, split: str | None = None, count: int | None = None) -> Iterator[Item]:
    """Yield the videos of a store of pairs (all or some, see `run_label`) or of a folder, one at a time.

    Raises:
        UserError: `source` is neither, or no video has a valid JSON file.
    """
    if (source / "statistics.json").is_file():
        store = open_pairs(source)
        chosen = store.split(split) if split else list(range(len(store)))
        if count and count < len(chosen):
            chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, count).round().astype(int)]
        return (_readable(store.ids[number], partial(store.read, number)) for number in chosen)
    if not source.is_dir():
        raise UserError("no such folder of videos", where=str(source))
    paths = [path for path in sorted(source.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise UserError("holds no video", where=str(source), remedy=f"one of {', '.join(VIDEO_SUFFIXES)}")
    sidecars = [_sidecar_or_error(path) for path in paths]
    errors = [about for about in sidecars if isinstance(about, UserError)]
    if len(errors) == len(paths):
        raise errors[0]
    return (_of_folder(path, about) for path, about in zip(paths, sidecars, strict=True))


def _readable(name: str, read: Callable[[], JudgedPair]) -> Item:
    try:
        return read()
    except (UserError, EpisodeError) as error:
        return Unreadable(name, error.line())


def _of_folder(path: Path, about: dict[str, Any] | UserError) -> Item:
    if isinstance(about, UserError):
        return Unreadable(path.stem, about.line())
    return _readable(path.stem, partial(_item, path, about))


def _sidecar_or_error(path: Path) -> dict[str, Any] | UserError:
    try:
        return sidecar_of(path)
    except UserError as error:
        return error


def sidecar_of(path: Path) -> dict[str, Any]:
    """The JSON file beside a video, with its instruction.

    Raises:
        UserError: there is none, or it holds no instruction or a wrong rate.
    """
    sidecar, about = read_sidecar(path, 'it gives the instruction: {"instruction": "…"}')
    if not isinstance(about.get("instruction"), str) or not about["instruction"].strip():
        raise UserError("has no instruction", where=str(sidecar))
    rate = about.get("fps")
    if rate is not None and not _is_rate(rate):
        raise UserError(f"fps is {rate!r}, not a number above 0", where=str(sidecar))
    return about


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _HIGHEST_FPS


def _item(path: Path, about: dict[str, Any]) -> JudgedPair:
    return JudgedPair(
        pair_id=path.stem,
        group_id=str(about.get("group_id") or about.get("episode_id") or path.stem),
        frames=decode_video(path),
        fps=float(about.get("fps") or FOLDER_FPS),
        instruction=about["instruction"],
        scores=np.zeros(len(DIMENSIONS), np.float32),  # replaced before the pair is stored
        annotator=UNLABELLED,
        kind=f"generated/{about.get('method') or path.parent.name}",
        provenance={"file": path.name},
    )
