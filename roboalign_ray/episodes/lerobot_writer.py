"""Writes episodes as a LeRobot v3.0 dataset, for LeRobot's tools and this project's own reader.

    meta/info.json                                 features, rate, path templates
    meta/stats.json                                per feature: min, max, mean, std, count
    meta/tasks.parquet                             sentence -> task_index
    meta/episodes/chunk-000/file-000.parquet       one row per episode: length, files, seconds within its videos
    data/chunk-000/file-000.parquet                one row per frame
    videos/KEY/chunk-CCC/file-FFF.mp4              one file per episode and view, yuv420p for LeRobot's viewers

The format has no units and kinds of actions. Names carry the units in brackets, as `Episode.action_names`; the kinds
stand in info.json below the feature `action`, as `info: {action_kinds: [...]}`, which other readers ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.action_kinds import KINDS_KEY
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.shards import write_json

VERSION = "v3.0"
_CHUNK = 1000  # files per folder
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FIRST = {"chunk_index": 0, "file_index": 0}
_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def write_lerobot(episodes: Sequence[Episode], folder: Path, *, crf: int = 18) -> None:
    """Write a dataset. Nothing appears at `folder` before everything is written.

    Args:
        episodes: episodes of one rate, with the same views, sizes and action names; state in all of them or in none.
        folder: must not exist.
        crf: constant rate factor of the videos, 0 (best) to 51.

    Raises:
        UserError: no episode, the folder exists, or the episodes differ in what a dataset has once.
    """
    if folder.exists():
        raise UserError("exists already", where=str(folder), remedy="name a new folder")
    if not episodes:
        raise UserError("a dataset of no episodes", where=str(folder))
    for view in episodes[0].frames:
        if "/" in view or view.startswith("."):
            raise UserError(
                f"view '{view}' cannot name a folder", where=str(folder), remedy="rename the view"
            )
    features = _features(episodes[0])
    for episode in episodes[1:]:
        _check_alike(episodes[0], episode, features)
    tasks = list(dict.fromkeys(episode.instruction for episode in episodes))
    rows = _rows(episodes, tasks)
    with complete_or_absent(folder) as draft:
        _write_table(draft / _DATA_PATH.format(**_FIRST), pa.table(rows))
        _write_tasks(draft / "meta/tasks.parquet", tasks)
        _write_table(
            draft / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(_episode_rows(episodes))
        )
        for number, episode in enumerate(episodes):
            for view, frames in episode.frames.items():
                path = draft / _VIDEO_PATH.format(video_key=_key(view), **_place(number))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_video(_even(frames), episode.fps, crf=crf, pixel_format="yuv420p"))
        write_json(draft / "meta/info.json", _info(episodes, features, len(tasks)))
        write_json(draft / "meta/stats.json", _statistics(episodes, rows))


def _key(view: str) -> str:
    return f"observation.images.{view}"


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // _CHUNK, "file_index": number % _CHUNK}


def _even(frames: np.ndarray) -> np.ndarray:
    """4:2:0 video needs even sides: the last row or column is repeated."""
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    return np.pad(frames, odd, mode="edge")


def _features(episode: Episode) -> dict[str, Any]:
    names = list(episode.action_names) or [f"action_{dim}" for dim in range(episode.actions.shape[1])]
    features: dict[str, Any] = {
        "action": {
            "dtype": "float32",
            "shape": [len(names)],
            "names": names,
            "info": {KINDS_KEY: list(episode.action_kinds)},
        }
    }
    if episode.state is not None:
        width = episode.state.shape[1]
        states = [f"state_{dim}" for dim in range(width)]
        features["observation.state"] = {"dtype": "float32", "shape": [width], "names": states}
    for view, frames in episode.frames.items():
        height, width = _even(frames[:1]).shape[1:3]
        features[_key(view)] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": episode.fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    for column in _COLUMNS:
        dtype = "float32" if column == "timestamp" else "int64"
        features[column] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _check_alike(first: Episode, other: Episode, features: dict[str, Any]) -> None:
    if _features(other) != features:
        different = [
            key for key in {**features, **_features(other)} if features.get(key) != _features(other).get(key)
        ]
        raise UserError(
            f"differs from '{first.episode_id}' in {', '.join(different)}",
            where=other.episode_id,
            remedy="write it to a dataset of its own",
        )


def _rows(episodes: Sequence[Episode], tasks: Sequence[str]) -> dict[str, pa.Array]:
    """The data table's columns, one row per frame."""
    lengths = [episode.length for episode in episodes]
    frame_index = np.concatenate([np.arange(length) for length in lengths])
    columns = {
        "action": _vectors(np.concatenate([episode.actions for episode in episodes])),
        "timestamp": pa.array((frame_index / episodes[0].fps).astype(np.float32)),
        "frame_index": pa.array(frame_index),
        "episode_index": pa.array(np.repeat(np.arange(len(episodes)), lengths)),
        "index": pa.array(np.arange(len(frame_index))),
        "task_index": pa.array(
            np.repeat([tasks.index(episode.instruction) for episode in episodes], lengths)
        ),
    }
    states = [episode.state for episode in episodes if episode.state is not None]
    if states:
        columns["observation.state"] = _vectors(np.concatenate(states))
    return columns


def _vectors(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _episode_rows(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    rows, first = [], 0
    for number, episode in enumerate(episodes):
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [episode.instruction],
            "length": episode.length,
            "dataset_from_index": first,
            "dataset_to_index": first + episode.length,
            **{f"data/{name}": value for name, value in _FIRST.items()},
            **{f"meta/episodes/{name}": value for name, value in _FIRST.items()},
        }
        for view in episode.frames:
            row |= {f"videos/{_key(view)}/{name}": value for name, value in _place(number).items()}
            row[f"videos/{_key(view)}/from_timestamp"] = 0.0
            row[f"videos/{_key(view)}/to_timestamp"] = episode.length / episode.fps
        rows.append(row)
        first += episode.length
    return rows


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """The table of tasks; LeRobot reads it with pandas and takes the sentences from its index."""
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pandas.DataFrame({"task_index": range(len(tasks))}, index=pandas.Index(tasks, name="task"))
    frame.to_parquet(path)


def _info(episodes: Sequence[Episode], features: dict[str, Any], tasks: int) -> dict[str, Any]:
    fps = episodes[0].fps
    return {
        "codebase_version": VERSION,
        "robot_type": episodes[0].embodiment,
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
        "total_tasks": tasks,
        "chunks_size": _CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if float(fps).is_integer() else fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH,
        "features": features,
    }


def _statistics(episodes: Sequence[Episode], rows: dict[str, pa.Array]) -> dict[str, Any]:
    """Statistics per feature; those of pictures per channel, shape [3, 1, 1], on the scale [0, 1]."""
    statistics: dict[str, Any] = {}
    for name, column in rows.items():
        width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 1
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        statistics[name] = _moments(flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width))
    for view in episodes[0].frames:
        pixels = np.concatenate([episode.frames[view].reshape(-1, 3) for episode in episodes]) / 255.0
        channels = _moments(pixels)
        count = sum(episode.length for episode in episodes)
        statistics[_key(view)] = {
            name: [count] if name == "count" else [[[value]] for value in values]
            for name, values in channels.items()
        }
    return statistics


def _moments(values: np.ndarray) -> dict[str, list[float]]:
    """Statistics of float64 [N, D], per dimension."""
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
    }
