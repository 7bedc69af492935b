"""Videos to be labelled: a store of pairs, a Ray Dataset of its rows, or a folder of files with their instructions.

videos/
  0001.mp4     mp4, mov, mkv, webm or avi
  0001.json    {"instruction": "…"}; also fps, group_id, method
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.annotator import UNLABELLED
from roboalign_ray.judge.bench.generated import VIDEO_SUFFIXES, read_sidecar
from roboalign_ray.judge.pairs import JudgedPair, decode_pair, open_pairs
from roboalign_ray.judge.rubric import DIMENSIONS

FOLDER_FPS = 10.0  # of videos whose JSON file names no rate


def items_of(source: Path, *, split: str | None = None, count: int | None = None) -> Iterator[JudgedPair]:
    """The videos of a store of pairs, all or some as in `run_label`, or of a folder; one at a time.

    Raises:
        UserError: neither, or a video or its JSON file cannot be used.
    """
    if (source / "statistics.json").is_file():
        store = open_pairs(source)
        chosen = store.split(split) if split else list(range(len(store)))
        if count and count < len(chosen):
            chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, count).round().astype(int)]
        return (store.read(number) for number in chosen)
    if not source.is_dir():
        raise UserError("no such folder of videos", where=str(source))
    paths = [path for path in sorted(source.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise UserError("holds no video", where=str(source), remedy=f"one of {', '.join(VIDEO_SUFFIXES)}")
    told = [_sidecar(path) for path in paths]
    return (_item(path, about) for path, about in zip(paths, told, strict=True))


def items_of_dataset(dataset: Any) -> Iterator[JudgedPair]:
    """The videos of a Ray Dataset whose rows are those of a store of pairs; decoded as they are asked for."""
    return (decode_pair(row) for row in dataset.iter_rows())


def _sidecar(path: Path) -> dict[str, Any]:
    sidecar, told = read_sidecar(path, 'it names the instruction: {"instruction": "…"}')
    if not str(told.get("instruction") or "").strip():
        raise UserError("names no instruction", where=str(sidecar))
    return told


def _item(path: Path, told: dict[str, Any]) -> JudgedPair:
    try:
        frames = decode_video(path)
    except EpisodeError as error:
        raise UserError(error.what, where=str(path)) from error
    return JudgedPair(
        pair_id=path.stem,
        group_id=str(told.get("group_id") or told.get("episode_id") or path.stem),
        frames=frames,
        fps=float(told.get("fps") or FOLDER_FPS),
        instruction=str(told["instruction"]),
        scores=np.zeros(len(DIMENSIONS), np.float32),  # replaced before anything is kept
        annotator=UNLABELLED,
        kind=f"generated/{told.get('method') or path.parent.name}",
        provenance={"file": path.name},
    )
