"""The episode tables of LeRobot datasets: length, instruction and files of each episode."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder, PathTemplate
from roboalign_ray.episodes.sources.lerobot_info import Info
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.parquet import read_columns

_MOST_TABLE_BYTES = 256 << 20
_LARGEST_INDEX = 10**12


@dataclass(frozen=True)
class Clip:
    """Position of one view of an episode: a file, its numbers in the table, and in v3.0 the seconds within it."""

    file: str
    place: tuple[int, ...]
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class EpisodeEntry:
    """One row of the episode table.

    Attributes:
        index: number of the episode.
        length: number of rows.
        tasks: its instructions, or their numbers in the task table; () if only the rows have them.
        data_file: Parquet file of its rows.
        clips: video key -> position of its frames.
    """

    index: int
    length: int
    tasks: tuple[str | int, ...]
    data_file: str
    clips: Mapping[str, Clip] = field(default_factory=dict)


@dataclass(frozen=True)
class BadEntry:
    """A row of the episode table that cannot be used: its name there, and the reason."""

    name: str
    reason: str


Entry = EpisodeEntry | BadEntry
Row = Mapping[str, Any]


def read_entries(
    folder: DatasetFolder, info: Info, video_keys: Sequence[str], *, v3: bool
) -> tuple[list[EpisodeEntry], list[BadEntry]]:
    """Usable episodes by index, and the rows of the table that cannot be used.

    Raises:
        UserError: there is no table, or no usable row in it.
        ValueError, OSError: the table as a whole cannot be read.
    """
    numbers = ("chunk_index", "file_index") if v3 else ("episode_index", "episode_chunk")
    where = "meta/info.json"
    data = PathTemplate(info.data_path, numbers=numbers, where=f"{where}: data_path")
    video = PathTemplate(
        info.video_path or "", numbers=numbers, texts=("video_key",), where=f"{where}: video_path"
    )
    rows = _rows_v3(folder) if v3 else _rows_v2(folder)

    def entry(row: Row) -> EpisodeEntry:
        return (_entry_v3 if v3 else _entry_v2)(row, info, video_keys, data, video)

    entries = [_entry_or_bad(name, row, entry) for name, row in rows]
    good = _without_doubles([item for item in entries if isinstance(item, EpisodeEntry)])
    bad = [item for item in (*entries, *good) if isinstance(item, BadEntry)]
    usable = sorted((item for item in good if isinstance(item, EpisodeEntry)), key=lambda item: item.index)
    if not usable:
        raise ValueError(bad[0].reason if bad else "no episode in them")
    _check_videos(usable, info)
    return usable, bad


def _check_videos(entries: Iterable[EpisodeEntry], info: Info) -> None:
    """Refuse a template without a field for the key or the number, which would give one video to all.

    Raises:
        UserError: the template names one file for different views, or for rows that differ in the table.
    """
    owners: dict[str, tuple[str, tuple[int, ...]]] = {}
    for entry in entries:
        for key, clip in entry.clips.items():
            if owners.setdefault(clip.file, (key, clip.place)) != (key, clip.place):
                raise UserError(
                    f"the template '{info.video_path}' names the same file for different videos",
                    where="meta/info.json: video_path",
                    remedy="it needs {video_key}, and the number that tells the files apart",
                )


def _entry_or_bad(name: str, row: Row | Exception, entry: Callable[[Row], EpisodeEntry]) -> Entry:
    try:
        if isinstance(row, Exception):
            raise row
        return entry(row)
    except (UserError, ValueError, TypeError, RecursionError, OverflowError) as error:
        return BadEntry(
            name, f"{name}: {error.line() if isinstance(error, UserError) else first_line(error)}"
        )


def _without_doubles(entries: list[EpisodeEntry]) -> list[Entry]:
    """Refuse entries with the same number unless they are equal; of equal ones, the first is kept."""
    by_index: dict[int, list[EpisodeEntry]] = defaultdict(list)
    for entry in entries:
        by_index[entry.index].append(entry)
    result: list[Entry] = []
    for index, same in by_index.items():
        reason = f"episode_index {index} occurs {len(same)} times in the episode table"
        equal = all(entry == same[0] for entry in same)
        kept, left_out = (same[:1], same[1:]) if equal else ([], same)
        result += [*kept, *(BadEntry(f"{index:06d}", reason) for _ in left_out)]
    return result


def _rows_v2(folder: DatasetFolder) -> Iterator[tuple[str, Row | Exception]]:
    """Rows of meta/episodes.jsonl."""
    text = read_small(folder.file("meta/episodes.jsonl"), _MOST_TABLE_BYTES).decode("utf-8-sig")
    for number, line in enumerate(text.split("\n"), 1):  # sentences may hold other ends of lines
        if not line.strip():
            continue
        name = f"meta/episodes.jsonl line {number}"
        try:
            row = json.loads(line)
            yield name, row if isinstance(row, dict) else TypeError("no JSON object")
        except (ValueError, RecursionError) as error:
            yield name, error


def _rows_v3(folder: DatasetFolder) -> Iterator[tuple[str, Row | Exception]]:
    """Rows of meta/episodes/chunk-*/file-*.parquet, without their statistics."""
    found = sorted((folder.root / "meta" / "episodes").glob("*/*.parquet"))
    if not found:
        raise FileNotFoundError("no meta/episodes/chunk-*/file-*.parquet")
    for path in found:
        name = str(path.relative_to(folder.root))
        table = read_columns(folder.file(name), lambda column: not column.startswith("stats/"))
        for number, row in enumerate(table.to_pylist()):
            yield f"{name} row {number}", row


def _entry_v2(
    row: Row, info: Info, video_keys: Iterable[str], data: PathTemplate, video: PathTemplate
) -> EpisodeEntry:
    index = _whole(row, "episode_index")
    place = {"episode_index": index, "episode_chunk": index // info.chunks_size}
    clips = {key: Clip(video.fill({"video_key": key, **place}), (index,)) for key in video_keys}
    return EpisodeEntry(index, _whole(row, "length"), _tasks(row.get("tasks")), data.fill(place), clips)


def _entry_v3(
    row: Row, info: Info, video_keys: Iterable[str], data: PathTemplate, video: PathTemplate
) -> EpisodeEntry:
    clips = {}
    for key in video_keys:
        at = f"videos/{key}/"
        place = {name: _whole(row, f"{at}{name}") for name in ("chunk_index", "file_index")}
        start, end = (_seconds(row, f"{at}{name}_timestamp") for name in ("from", "to"))
        if end <= start:
            raise ValueError(f"'{at}to_timestamp' {end:g} is not after its from_timestamp {start:g}")
        clips[key] = Clip(video.fill({"video_key": key, **place}), tuple(place.values()), start, end)
    place = {name: _whole(row, f"data/{name}") for name in ("chunk_index", "file_index")}
    return EpisodeEntry(
        _whole(row, "episode_index"),
        _whole(row, "length"),
        _tasks(row.get("tasks")),
        data.fill(place),
        clips,
    )


def _whole(row: Row, key: str) -> int:
    """A non-negative integer; whole floats, which pandas makes of columns with gaps, are accepted."""
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST_INDEX:
        said = "missing" if key not in row else f"{value!r:.40}, not a number from 0 on"
        raise EpisodeError(f"'{key}' is {said}")
    return value


def _seconds(row: Row, key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise EpisodeError(f"'{key}' is {'missing' if key not in row else repr(value)[:40]}")
    return float(value)


def _tasks(tasks: Any) -> tuple[str | int, ...]:
    """Instructions as a list, a single instruction, or their numbers."""
    if tasks is None:
        return ()
    given = tasks if isinstance(tasks, list) else [tasks]
    for task in given:
        if not isinstance(task, str | int) or isinstance(task, bool):
            raise EpisodeError(f"'tasks' holds {task!r:.40}, neither a sentence nor a number")
    return tuple(given)
