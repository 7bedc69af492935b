"""Reads clips in a worker: frames, rate, instruction, and the hash of the content.

A clip that cannot be read is a value. Stores, data sets and Parquet files stay open between clips. The order of the
listing is the cheapest order.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined, Record, unforeseen
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError, printable, raise_if_host
from roboalign_ray.foundation.storage.parquet import open_parquet, read_columns
from roboalign_ray.foundation.storage.readers import parse_json
from roboalign_ray.judge.data.pairs import open_pairs
from roboalign_ray.judge.protocol import JudgeRequest, check_request, read_request
from roboalign_ray.judge.serving.http import LONGEST_INSTRUCTION
from roboalign_ray.pipelines.label.clips import Clip, ClipInput, open_episodes
from roboalign_ray.pipelines.label.remote_files import is_uri, read_file
from roboalign_ray.pipelines.label.videos import Unreadable, sidecar_of

_LONGEST_REASON = 400
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ReadClip:
    """A clip that was read.

    Attributes:
        clip: its place.
        request: the question to a judge, named by the clip's id; None if content and instruction are those that
            already have a score.
        sha256: hash of its content: of the file's bytes, or of the frames of an episode.
    """

    clip: Clip
    request: JudgeRequest | None
    sha256: str


def content_key(sha256: str, instruction: str) -> str:
    """Identifies what a score is for: content and instruction."""
    return hashlib.sha256(f"{sha256} {instruction}".encode()).hexdigest()[:32]


class ClipReader:
    """Reads the clips of one input.

    Args:
        source: the input.
        most_pixels: limit on the pixels of all frames of a clip.
    """

    def __init__(self, source: ClipInput, most_pixels: int) -> None:
        self._source, self._most = source, most_pixels
        self._table: tuple[str, int, pa.Table] | None = None  # file, first row, and rows of one row group
        self._episodes: tuple[str, int, Iterator[Record]] | None = None  # folder, next number, the rest
        self._held = ExitStack()
        self._copies: dict[str, Path] = {}  # local copies of remote Parquet files

    def read(self, clip: Clip) -> ReadClip | Unreadable:
        """The clip, or why it cannot be judged.

        Raises:
            HostError: the machine stopped the work (full disk, no memory, no permission).
        """
        if clip.fault:
            return Unreadable(clip.clip_id, clip.fault)
        try:
            return self._read(clip)
        except Exception as error:
            raise_if_host(error, where=clip.clip_id)
            reason = error.line() if isinstance(error, UserError) else unforeseen(error)
            return Unreadable(clip.clip_id, printable(reason)[:_LONGEST_REASON])

    def _read(self, clip: Clip) -> ReadClip:
        if clip.kind == "file":
            video: bytes | Path = read_file(clip.place) if is_uri(clip.place) else Path(clip.place)
            return self._of_video(clip, video, self._source.instruction or self._sidecar(clip.place))
        if clip.kind == "row":
            return self._of_video(clip, *self._row(clip))
        if clip.kind == "pair":
            pair = _pairs(clip.place).read(clip.number)
            return self._of_frames(clip, pair.frames, pair.fps, pair.instruction)
        if clip.kind == "stored":
            return self._of_episode(clip, _store(clip.place).read(clip.number))
        return self._of_episode(clip, self._episode(clip))

    def _of_video(self, clip: Clip, video: bytes | Path, instruction: str) -> ReadClip:
        sha256 = _sha256(video)
        _check_instruction(instruction, clip)
        if content_key(sha256, instruction) == clip.before:
            return ReadClip(clip, None, sha256)
        request = read_request(video, instruction, name=clip.clip_id, most_pixels=self._most)
        return ReadClip(clip, request, sha256)

    def _of_episode(self, clip: Clip, episode: Episode) -> ReadClip:
        frames = episode.view(self._source.view or None)
        return self._of_frames(clip, frames, episode.fps, episode.instruction)

    def _of_frames(self, clip: Clip, frames: np.ndarray, fps: float, instruction: str) -> ReadClip:
        instruction = self._source.instruction or instruction
        _check_instruction(instruction, clip)
        digest = hashlib.sha256(f"{frames.shape} {fps}".encode())
        digest.update(np.ascontiguousarray(frames).data)
        sha256 = digest.hexdigest()
        if content_key(sha256, instruction) == clip.before:
            return ReadClip(clip, None, sha256)
        request = JudgeRequest(frames, fps, instruction, name=clip.clip_id)
        check_request(request)
        return ReadClip(clip, request, sha256)

    # --- instructions and rows ---------------------------------------------------------------------------------------

    def _sidecar(self, place: str) -> str:
        if not is_uri(place):
            return str(sidecar_of(Path(place))["instruction"])
        beside = f"{place.rpartition('.')[0]}.json"
        about = parse_json(read_file(beside), where=beside, what="description of a video")
        instruction = about.get("instruction") if isinstance(about, dict) else None
        if not isinstance(instruction, str):
            raise UserError("has no instruction", where=beside)
        return instruction

    def _row(self, clip: Clip) -> tuple[bytes | Path, str]:
        """Video and instruction of a row."""
        table, row = self._rows(clip)
        cells = {name: table[name][row].as_py() for name in table.column_names}
        name = self._video_column(table.column_names, clip)
        video = cells[name]
        if isinstance(video, dict):  # as the `datasets` package stores videos and pictures
            video = video.get("bytes") or video.get("path")
        instruction = self._source.instruction or cells.get(self._source.instruction_column) or ""
        if not isinstance(instruction, str):
            raise UserError(f"column '{self._source.instruction_column}' holds no text", where=clip.clip_id)
        if isinstance(video, bytes):
            return video, instruction
        if isinstance(video, str):
            return self._beside(clip, video), instruction
        raise UserError(f"column '{name}' holds no video and no path", where=clip.clip_id)

    def _beside(self, clip: Clip, name: str) -> bytes | Path:
        """The file of a path column: below the folder of the Parquet file, and nowhere else."""
        if not is_uri(clip.place):
            return DatasetFolder(Path(clip.place).parent).file(name, "video file")
        if is_uri(name) or name.startswith("/") or ".." in name.split("/"):
            raise UserError("the path leads out of the data set's folder", where=clip.clip_id)
        return read_file(f"{clip.place.rpartition('/')[0]}/{name}")

    def _video_column(self, columns: list[str], clip: Clip) -> str:
        wanted = [self._source.video_column] if self._source.video_column else ["video", "path"]
        found = next((name for name in wanted if name in columns), None)
        if found is None:
            raise UserError(
                f"no column {' or '.join(repr(name) for name in wanted)}",
                where=clip.place,
                remedy="name the one of the videos with --video-column",
            )
        return found

    def _rows(self, clip: Clip) -> tuple[pa.Table, int]:
        """The row group that holds a row, and the row's number in it."""
        if self._table is not None:
            place, first, table = self._table
            if place == clip.place and first <= clip.number < first + len(table):
                return table, clip.number - first
        path = self._local(clip.place)
        wanted = {self._source.video_column or "video", "path", self._source.instruction_column}
        with open_parquet(path) as file:
            group, first = _group_of(file.metadata, clip.number)
        table = read_columns(path, wanted.__contains__, groups=lambda metadata: [group])
        self._table = clip.place, first, table
        return table, clip.number - first

    def _local(self, place: str) -> Path:
        if not is_uri(place):
            return Path(place)
        if place not in self._copies:
            folder = self._held.enter_context(tempfile.TemporaryDirectory(prefix="roboalign_rows_"))
            self._copies[place] = Path(folder) / "rows.parquet"
            self._copies[place].write_bytes(read_file(place))
        return self._copies[place]

    # --- data sets ---------------------------------------------------------------------------------------------------

    def _episode(self, clip: Clip) -> Episode:
        """An episode of a data set, which can only be read in order."""
        folder, number, records = self._episodes or ("", 0, iter(()))
        if folder != clip.place or number > clip.number:
            records, number = iter(open_episodes(Path(clip.place), self._source.view).records()), 0
        for name, read in records:
            number += 1
            if number - 1 < clip.number:
                continue
            self._episodes = clip.place, number, records
            if name != clip.clip_id:
                break
            found = read()
            if isinstance(found, Quarantined):
                raise UserError(found.reason)
            return found
        raise UserError("the data set has changed since it was listed", where=clip.place)


def clips_as_text(clips: list[Clip]) -> str:
    """Clips as one JSON text, for a row of a Ray dataset."""
    return json.dumps([vars(clip) for clip in clips])


def clips_of_text(text: str) -> list[Clip]:
    """The clips of `clips_as_text`."""
    return [Clip(**values) for values in json.loads(text)]


def _check_instruction(instruction: str, clip: Clip) -> None:
    if not instruction.strip():
        raise UserError(
            "has no instruction", where=clip.clip_id, remedy="give one for all with --instruction"
        )
    if len(instruction) > LONGEST_INSTRUCTION:
        raise UserError(f"the instruction has {len(instruction)} characters", where=clip.clip_id)


def _sha256(video: bytes | Path) -> str:
    digest = hashlib.sha256()
    if isinstance(video, bytes):
        digest.update(video)
    else:
        with video.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _group_of(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    first = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < first + count:
            return group, first
        first += count
    raise UserError("the file has changed since it was listed")


@lru_cache(maxsize=4)
def _store(place: str) -> Any:
    return open_store(place)


@lru_cache(maxsize=4)
def _pairs(place: str) -> Any:
    return open_pairs(place)
