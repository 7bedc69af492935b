"""LeRobot datasets, v2.x and v3.0: Parquet tables beside mp4 videos of any codec that FFmpeg reads.

v2.x keeps one Parquet file and one mp4 per view for each episode, listed in meta/episodes.jsonl. v3.0 packs many
episodes in one file: meta/episodes/chunk-*/file-*.parquet tells for each episode which data file holds its rows
(selected by `episode_index`) and which video file holds its frames, from `from_timestamp` to `to_timestamp`.

The frame rate is that of meta/info.json: some videos' headers hold a nonsense one. Rows and frames are matched by
order, and an episode whose counts differ is quarantined, as is one that lacks a file the tables name.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, Field, PositiveInt

from roboalign_ray.episodes.episode import Episode, EpisodeError, Outcome
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.metadata import read_metadata
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import UserError

_ACTION, _STATE = "action", "observation.state"


class Feature(BaseModel):
    """One entry of info.json's features."""

    dtype: str
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        """Pictures or video, but no depth map."""
        notes = {**(self.info or {}), **(self.video_info or {})}
        depth = notes.get("is_depth_map") or notes.get("video.is_depth_map")
        return self.dtype in ("video", "image") and not depth


class Info(BaseModel):
    """What is used of meta/info.json. The paths are templates with the names of `EpisodeEntry`'s places."""

    codebase_version: str
    fps: float = Field(gt=0, allow_inf_nan=False)
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    chunks_size: PositiveInt = 1000
    robot_type: str | None = None


@dataclass(frozen=True)
class Clip:
    """Where one view of one episode lies: a file, and in v3.0 the seconds within it."""

    file: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class EpisodeEntry:
    """One row of the episode table. `clips` maps video key -> `Clip`."""

    index: int
    length: int
    instruction: str
    data_file: str
    clips: Mapping[str, Clip] = field(default_factory=dict)


class LeRobotSource:
    """Episodes of a LeRobot dataset folder.

    Args:
        root: folder that holds meta/info.json.
        views: view names (the part after "observation.images.") to decode; None takes all.

    Raises:
        UserError: unreadable metadata, an unknown version, no view or no action.
    """

    def __init__(self, root: Path, *, views: tuple[str, ...] | None = None) -> None:
        self.root = Path(root)
        self.name = self.root.resolve().name
        self.info = read_metadata(self.root / "meta" / "info.json", Info, "LeRobot info")
        self.version = self.info.codebase_version.lstrip("v")
        if self.version.split(".")[0] not in ("2", "3"):
            raise UserError(
                f"LeRobot version '{self.info.codebase_version}' is not known",
                where=str(self.root),
                remedy="v2.x and v3.0 are read",
            )
        self.fps = self.info.fps
        self.features = self.info.features
        self.cameras = {_view_name(key): key for key, feature in self.features.items() if feature.is_camera}
        if views is not None:
            self.cameras = {view: key for view, key in self.cameras.items() if view in views}
        if not self.cameras or _ACTION not in self.features:
            missing = "camera view" if not self.cameras else "'action' feature"
            raise UserError(f"info.json names no {missing}", where=str(self.root))
        if self._video_keys() and not self.info.video_path:
            raise UserError("info.json names videos but no 'video_path'", where=str(self.root))
        self._video_path = self.info.video_path or ""
        try:
            self.entries = self._entries_v3() if self.version.startswith("3") else self._entries_v2()
        except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
            raise UserError(
                f"episode tables cannot be read ({error})", where=str(self.root / "meta")
            ) from error

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def view_names(self) -> tuple[str, ...]:
        """Views that are read."""
        return tuple(self.cameras)

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Episodes by index; those with a missing or corrupt file are quarantined by that file's name."""
        for entry in self.entries:
            episode_id = f"{self.name}/{entry.index:06d}"
            try:
                yield self._episode(episode_id, entry)
            except UserError as error:
                yield Quarantined(episode_id, error.line().replace(f"{self.root}/", ""))

    def _episode(self, episode_id: str, entry: EpisodeEntry) -> Episode:
        for clip in entry.clips.values():  # absent videos are the common case: seen before anything is read
            if not (self.root / clip.file).is_file():
                raise EpisodeError("no such video file", where=clip.file)
        rows = self._rows(entry)
        actions = _matrix(rows, _ACTION, entry.data_file)
        state = _matrix(rows, _STATE, entry.data_file) if _STATE in rows.column_names else None
        frames = {view: self._frames(entry, key, rows) for view, key in self.cameras.items()}
        names = _flat_names(self.features[_ACTION].names, actions.shape[1])
        return Episode(
            episode_id=episode_id,
            group_id=episode_id,
            frames=frames,
            actions=actions,
            action_names=names,
            state=state,
            instruction=entry.instruction,
            fps=self.fps,
            embodiment=self.info.robot_type or "unknown",
            outcome=Outcome(success=_success(rows)),
            provenance={
                "format": f"lerobot v{self.version}",
                "file": entry.data_file,
                "episode_index": entry.index,
                "videos": {key: clip.file for key, clip in entry.clips.items()},
            },
        )

    def _rows(self, entry: EpisodeEntry) -> pa.Table:
        """The episode's rows in frame order.

        Raises:
            EpisodeError: missing or corrupt file, or another number of rows than the episode table says.
        """
        path = self.root / entry.data_file
        if not path.is_file():
            raise EpisodeError("no such data file", where=entry.data_file)
        try:
            table = _read_data_file(path)
            if "episode_index" in table.column_names:
                mask = np.asarray(table["episode_index"]).reshape(-1) == entry.index
                table = table.filter(pa.array(mask))
            if "frame_index" in table.column_names:
                table = table.sort_by("frame_index")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise EpisodeError(f"Parquet file cannot be read ({error})", where=entry.data_file) from error
        if table.num_rows != entry.length:
            raise EpisodeError(
                f"{table.num_rows} rows, the episode table says {entry.length}", where=entry.data_file
            )
        return table

    def _frames(self, entry: EpisodeEntry, key: str, rows: pa.Table) -> np.ndarray:
        """Frames of one view, uint8 [T, H, W, 3]; pictures inside the table, or a stretch of a video."""
        if key not in entry.clips:
            return _pictures(rows, key, entry.data_file)
        clip = entry.clips[key]
        # A quarter of a frame early, so that timestamps rounded by the container fall on the right side.
        early = 0.25 / self.fps
        frames = decode_video(
            self.root / clip.file,
            start_seconds=None if clip.start is None else max(0.0, clip.start - early),
            end_seconds=None if clip.end is None else clip.end - early,
        )
        if len(frames) != rows.num_rows:
            raise EpisodeError(f"{len(frames)} frames for {rows.num_rows} rows", where=clip.file)
        return frames

    def _video_keys(self) -> list[str]:
        return [key for key in self.cameras.values() if self.features[key].dtype == "video"]

    def _entries_v2(self) -> list[EpisodeEntry]:
        entries = []
        for line in (self.root / "meta" / "episodes.jsonl").read_text().splitlines():
            if not line.strip():
                continue
            row = json.loads(line)
            index = int(row["episode_index"])
            place = {"episode_index": index, "episode_chunk": index // self.info.chunks_size}
            clips = {key: Clip(self._video_path.format(video_key=key, **place)) for key in self._video_keys()}
            data_file = self.info.data_path.format(**place)
            entries.append(EpisodeEntry(index, int(row["length"]), _first(row["tasks"]), data_file, clips))
        return sorted(entries, key=lambda entry: entry.index)

    def _entries_v3(self) -> list[EpisodeEntry]:
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise FileNotFoundError("no meta/episodes/chunk-*/file-*.parquet")
        entries = []
        for file in files:
            names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
            entries += [self._entry_v3(row) for row in pq.read_table(file, columns=names).to_pylist()]
        return sorted(entries, key=lambda entry: entry.index)

    def _entry_v3(self, row: Mapping[str, Any]) -> EpisodeEntry:
        clips = {}
        for key in self._video_keys():
            at = f"videos/{key}/"
            place = {"chunk_index": row[f"{at}chunk_index"], "file_index": row[f"{at}file_index"]}
            file = self._video_path.format(video_key=key, **place)
            clips[key] = Clip(file, float(row[f"{at}from_timestamp"]), float(row[f"{at}to_timestamp"]))
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        return EpisodeEntry(
            int(row["episode_index"]),
            int(row["length"]),
            _first(row["tasks"]),
            self.info.data_path.format(**place),
            clips,
        )


@lru_cache(maxsize=2)
def _read_data_file(path: Path) -> pa.Table:
    """A whole data file; v3.0 keeps many episodes in one, read once for all of them."""
    return pq.read_table(path)


def _view_name(key: str) -> str:
    return key.removeprefix("observation.images.").removeprefix("observation.")


def _first(tasks: Any) -> str:
    """The instruction; a LeRobot episode may name several tasks, of which the first is taken."""
    if isinstance(tasks, str):
        return tasks.strip()
    return str(tasks[0]).strip() if tasks else ""


def _matrix(rows: pa.Table, column: str, where: str) -> np.ndarray:
    """A list column as float32 [T, D].

    Raises:
        EpisodeError: rows of different length, no number, or a number that is not finite.
    """
    try:
        values = np.array(rows[column].to_pylist(), dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"column '{column}' is no table of numbers ({error})", where=where) from error
    values = values.reshape(rows.num_rows, -1)
    if not np.isfinite(values).all():
        row, dim = np.argwhere(~np.isfinite(values))[0]
        raise EpisodeError(f"'{column}' holds {values[row, dim]} at row {row}, dimension {dim}", where=where)
    return values


def _pictures(rows: pa.Table, key: str, where: str) -> np.ndarray:
    """Pictures stored in the table ({"bytes", "path"}), uint8 [T, H, W, 3]."""
    try:
        pictures = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in rows[key].to_pylist()]
        return np.stack([np.asarray(picture) for picture in pictures])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EpisodeError(f"pictures of '{key}' cannot be decoded ({error})", where=where) from error


def _flat_names(names: Any, size: int) -> tuple[str, ...]:
    """LeRobot writes names as a list, a list in a list, or {"motors": [...]}; without fit ones, action[d]."""
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    while isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if isinstance(names, list) and len(names) == size:
        return tuple(str(name) for name in names)
    return tuple(f"action[{d}]" for d in range(size))


def _success(rows: pa.Table) -> bool | None:
    """Whether any row is marked as a success; None where the dataset has no such column."""
    if "next.success" not in rows.column_names:
        return None
    return any(bool(value) for value in np.ravel(rows["next.success"].to_pylist()))
