"""The episode tables of LeRobot datasets: for each episode its length, its instruction and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from roboalign_ray.episodes.sources.lerobot_info import Info


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


def entries_v2(root: Path, info: Info, video_keys: Iterable[str]) -> list[EpisodeEntry]:
    """Episodes of meta/episodes.jsonl, by index."""
    keys = list(video_keys)
    entries = []
    for line in (root / "meta" / "episodes.jsonl").read_text().splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        index = int(row["episode_index"])
        place = {"episode_index": index, "episode_chunk": index // info.chunks_size}
        clips = {key: Clip((info.video_path or "").format(video_key=key, **place)) for key in keys}
        data_file = info.data_path.format(**place)
        entries.append(EpisodeEntry(index, int(row["length"]), _first(row["tasks"]), data_file, clips))
    return sorted(entries, key=lambda entry: entry.index)


def entries_v3(root: Path, info: Info, video_keys: Iterable[str]) -> list[EpisodeEntry]:
    """Episodes of meta/episodes/chunk-*/file-*.parquet, by index."""
    keys = list(video_keys)
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError("no meta/episodes/chunk-*/file-*.parquet")
    entries = []
    for file in files:
        names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        entries += [_entry_v3(row, info, keys) for row in pq.read_table(file, columns=names).to_pylist()]
    return sorted(entries, key=lambda entry: entry.index)


def _entry_v3(row: Mapping[str, Any], info: Info, video_keys: Iterable[str]) -> EpisodeEntry:
    clips = {}
    for key in video_keys:
        at = f"videos/{key}/"
        place = {"chunk_index": row[f"{at}chunk_index"], "file_index": row[f"{at}file_index"]}
        file = (info.video_path or "").format(video_key=key, **place)
        clips[key] = Clip(file, float(row[f"{at}from_timestamp"]), float(row[f"{at}to_timestamp"]))
    place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    return EpisodeEntry(
        int(row["episode_index"]),
        int(row["length"]),
        _first(row["tasks"]),
        info.data_path.format(**place),
        clips,
    )


def _first(tasks: Any) -> str:
    """The instruction; a LeRobot episode may name several tasks, of which the first is taken."""
    if isinstance(tasks, str):
        return tasks.strip()
    return str(tasks[0]).strip() if tasks else ""
