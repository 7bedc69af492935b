"""Reads generated videos from any source: a folder of video files, each with a JSON file of the same name.

    videos/
      0001.mp4     mp4, mov, mkv, webm or avi; frame 0 is the real start frame
      0001.json    {"episode_id": "…", "start": 12, "method": "my_model"}

`episode_id` and `start` identify the real continuation in the episode store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.judge.bench.pair_maker import PairMaker
from roboalign_ray.judge.bench.plan import Proposal
from roboalign_ray.judge.data.pairs import JudgedPair

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")


@dataclass(frozen=True)
class GeneratedVideo:
    """A video file, the real clip that it continues, and the method that made it."""

    path: Path
    episode_id: str
    start: int
    method: str


def find_generated(folder: Path) -> list[GeneratedVideo]:
    """The videos of a folder, sorted by name. Reads the JSON files but no video.

    Raises:
        UserError: there is no such folder, it holds no video, or a JSON file is missing or incomplete.
    """
    if not folder.is_dir():
        raise UserError("no such folder of generated videos", where=str(folder))
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise UserError("holds no video", where=str(folder), remedy=f"one of {', '.join(VIDEO_SUFFIXES)}")
    return [_described(path) for path in videos]


def read_sidecar(video: Path, remedy: str) -> tuple[Path, dict[str, Any]]:
    """The path and content of the JSON file beside a video.

    Args:
        remedy: what the file should contain, for the error when it is missing.

    Raises:
        UserError: it is missing or not a JSON object, or another video has the same stem and so the same JSON file.
    """
    sidecar = video.with_suffix(".json")
    for suffix in VIDEO_SUFFIXES:
        other = video.with_suffix(suffix)
        if other.name != video.name and other.exists() and not other.samefile(video):
            raise UserError(
                f"'{video.name}' and '{other.name}' differ only in their suffix",
                where=str(video.parent),
                remedy="rename one",
            )
    if not sidecar.is_file():
        raise UserError(
            f"'{video.name}' has no '{sidecar.name}' beside it", where=str(video.parent), remedy=remedy
        )
    return sidecar, read_object(sidecar, "description of a video", remedy=remedy)


def _described(path: Path) -> GeneratedVideo:
    sidecar, about = read_sidecar(path, "it gives episode_id and start")
    if not isinstance(about.get("episode_id"), str):
        raise UserError("has no episode_id", where=str(sidecar))
    start = about.get("start")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise UserError(f"start is {start!r}, not a frame number", where=str(sidecar))
    return GeneratedVideo(path, about["episode_id"], start, str(about.get("method") or path.parent.name))


def generated_pairs(videos: list[GeneratedVideo], maker: PairMaker) -> Iterator[JudgedPair]:
    """Pairs of the videos, scored by the privileged teacher.

    Raises:
        UserError: a video cannot be read, its episode is not in the store, or it cannot be scored.
    """
    for number, video in enumerate(videos):
        where = str(video.path)
        try:
            frames = decode_video(video.path)
            source = maker.source(video.episode_id, video.start)
        except EpisodeError as error:
            raise UserError(error.what, where=where) from error
        height, width = source.window.frames.shape[1:3]
        scored = maker.generated(source, resize_frames(frames, height, width))
        if isinstance(scored, Failed):
            raise UserError(f"cannot be scored ({scored.reason})", where=where)
        points, measured = scored
        proposal = Proposal("rollout", number, 0, video.start)
        about = measured | {"file": video.path.name, "method": video.method}
        kind = f"generated/{video.method}"
        yield maker.judged(proposal, source, kind, np.asarray(frames), points, "privileged", about)
