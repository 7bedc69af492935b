"""Our own episode store: a folder of Parquet shards with encoded video, statistics and a card.

    store/
      shard-00000.parquet    one row per episode (see `rows.py` for the columns)
      statistics.json        schema version, counts, lengths, action percentiles of the train split
      quarantine.json        episodes that could not be used, each with its reason
      README.md              the dataset card

A store is written beside its place and moved there when complete: no reader ever sees half of one.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.rows import (
    INDEX_COLUMNS,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    episode_to_row,
    row_to_episode,
)
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.splits import check_split, split_of
from roboalign_ray.foundation.failures import UserError

ROW_GROUP = 4  # episodes per Parquet row group: reading one episode reads this many


@dataclass(frozen=True)
class StoreCard:
    """What the dataset card tells: where the episodes come from and how to make them again.

    Attributes:
        title: first line.
        summary: a paragraph.
        command: the command line that makes this store, "" where there is none.
        license: SPDX name, or a sentence.
        settings: generator or converter settings (JSON types only).
    """

    title: str = "Robot episodes"
    summary: str = ""
    command: str = ""
    license: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreSummary:
    """What was written.

    Attributes:
        path: the store.
        episodes, frames, bytes: totals; bytes of all files.
        quarantined: episodes left out, each with its reason.
    """

    path: Path
    episodes: int
    frames: int
    bytes: int
    quarantined: tuple[Quarantined, ...]


class _Statistics:
    """Counts and action percentiles, gathered while episodes pass."""

    def __init__(self, held_out_fraction: float) -> None:
        self.held_out_fraction = held_out_fraction
        self.lengths: list[int] = []
        self.sources: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.successes: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.instructions: set[str] = set()
        self.action_names: dict[int, list[str]] = {}
        self.actions: dict[int, list[np.ndarray]] = {}

    def add(self, episode: Episode) -> None:
        split = split_of(episode.group_id, self.held_out_fraction)
        self.lengths.append(episode.length)
        self.sources[episode.episode_id.rsplit("/", 2)[0]] += 1
        self.splits[split] += 1
        self.successes[str(episode.outcome.success).lower()] += 1
        self.instructions.add(episode.instruction)
        for view, frames in episode.frames.items():
            self.views[f"{view} {frames.shape[1]}x{frames.shape[2]}"] += 1
        dims = episode.actions.shape[1]
        self.action_names.setdefault(dims, list(episode.action_names))
        if split == "train":
            self.actions.setdefault(dims, []).append(np.asarray(episode.actions, dtype=np.float32))

    def as_json(self) -> dict[str, Any]:
        lengths = np.asarray(self.lengths)
        return {
            "schema_version": SCHEMA_VERSION,
            "episodes": len(lengths),
            "frames": int(lengths.sum()),
            "length": {"min": int(lengths.min()), "max": int(lengths.max()), "mean": float(lengths.mean())},
            "held_out_fraction": self.held_out_fraction,
            "splits": dict(self.splits),
            "sources": dict(sorted(self.sources.items())),
            "views": dict(self.views),
            "success": dict(self.successes),
            "instructions": len(self.instructions - {""}),
            "actions": {str(dims): self._actions(dims) for dims in sorted(self.action_names)},
        }

    def _actions(self, dims: int) -> dict[str, Any]:
        """Per-dimension figures of the train split; of nothing where it is empty."""
        names = self.action_names[dims]
        if dims not in self.actions:
            return {"names": names, "frames": 0}
        rows = np.concatenate(self.actions[dims]).astype(np.float64)
        low, high = np.percentile(rows, [1, 99], axis=0)
        figures = {"p01": low, "p99": high, "mean": rows.mean(0), "std": rows.std(0)}
        figures |= {"min": rows.min(0), "max": rows.max(0)}
        return {
            "names": names,
            "frames": len(rows),
            **{key: value.tolist() for key, value in figures.items()},
        }


def write_store(
    items: Iterable[Episode | Quarantined],
    path: Path,
    *,
    card: StoreCard | None = None,
    shard_episodes: int = 64,
    held_out_fraction: float = 0.1,
    crf: int = 18,
    pixel_format: str = "yuv444p",
    overwrite: bool = False,
) -> StoreSummary:
    """Write episodes as they come; memory holds one shard. Nothing appears at `path` before all is written.

    Args:
        items: episodes, and values for those that cannot be used.
        path: the store's folder.
        card: what the dataset card tells.
        shard_episodes: episodes per Parquet file.
        held_out_fraction: split that the action statistics leave out.
        crf, pixel_format: video quality, see `encode_video`.
        overwrite: replace an existing store.

    Raises:
        UserError: the folder exists and may not be replaced, two episodes share an id, or none is usable.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError("already exists", where=str(path), remedy="choose another place or allow overwriting")
    if path.exists() and any(path.iterdir()) and not (path / "statistics.json").is_file():
        raise UserError("is not an episode store, so it is not overwritten", where=str(path))
    statistics, quarantined = _Statistics(held_out_fraction), []
    with complete_or_absent(path) as folder:
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        shards = 0
        for item in items:
            if isinstance(item, Quarantined):
                quarantined.append(item)
                continue
            if item.episode_id in seen:
                raise UserError(f"two episodes named '{item.episode_id}'", where=str(path))
            seen.add(item.episode_id)
            try:
                rows.append(episode_to_row(item, crf=crf, pixel_format=pixel_format))
            except EpisodeError as error:
                quarantined.append(Quarantined(item.episode_id, error.line()))
                continue
            statistics.add(item)
            if len(rows) >= shard_episodes:
                _write_shard(folder, shards, rows)
                rows, shards = [], shards + 1
        if not statistics.lengths:
            first = f"; the first: {quarantined[0].reason}" if quarantined else ""
            raise UserError(f"no usable episode ({len(quarantined)} quarantined{first})", where=str(path))
        if rows:
            _write_shard(folder, shards, rows)
        figures = statistics.as_json() | {"quarantined": len(quarantined)}
        _write_json(folder / "statistics.json", figures)
        _write_json(folder / "quarantine.json", [asdict(item) for item in quarantined])
        (folder / "README.md").write_text(_card_text(card or StoreCard(), figures), encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
    return StoreSummary(path, figures["episodes"], figures["frames"], size, tuple(quarantined))


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A folder to write in that takes its final name only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    folder.mkdir()
    try:
        yield folder
        replaced = path.parent / f"{folder.name}.old"
        if path.exists():
            os.rename(path, replaced)
        os.rename(folder, path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_shard(folder: Path, number: int, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    # Video does not compress again; dictionary pages would only copy it.
    path = folder / f"shard-{number:05d}.parquet"
    pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd", use_dictionary=False)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _card_text(card: StoreCard, figures: Mapping[str, Any]) -> str:
    front = f"---\nlicense: {card.license}\n---\n" if card.license else ""
    lines = [f"# {card.title}", "", card.summary, "", "| | |", "|---|---|"]
    length = figures["length"]
    lines += [
        f"| episodes | {figures['episodes']} ({figures['quarantined']} quarantined) |",
        f"| frames | {figures['frames']} (episodes of {length['min']} to {length['max']}) |",
        f"| splits | {', '.join(f'{name} {count}' for name, count in sorted(figures['splits'].items()))} |",
        f"| views | {', '.join(f'{name} ({count} episodes)' for name, count in figures['views'].items())} |",
        f"| success | {', '.join(f'{name} {count}' for name, count in sorted(figures['success'].items()))} |",
        f"| instructions | {figures['instructions']} different sentences |",
        f"| schema version | {figures['schema_version']} |",
        "",
        "| source | episodes |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in figures["sources"].items()),
    ]
    if card.command:
        lines += ["", "Made by", "", f"    {card.command}"]
    if card.settings:
        lines += ["", "Settings", "", "```json", json.dumps(card.settings, indent=1), "```"]
    return front + "\n".join(lines) + "\n"


def resolve_store(path: str | Path) -> Path:
    """The folder of a store; "shipped" is the one inside the package.

    Raises:
        UserError: there is no store there, or it has a schema this version does not read.
    """
    folder = (
        Path(str(importlib.resources.files("roboalign_ray") / "assets" / "episodes"))
        if str(path) == "shipped"
        else Path(path)
    )
    remedy = "make one with: roboalign episodes generate, or roboalign episodes convert"
    if not (folder / "statistics.json").is_file():
        raise UserError(
            "no episode store here (statistics.json is missing)", where=str(folder), remedy=remedy
        )
    try:
        version = json.loads((folder / "statistics.json").read_text(encoding="utf-8")).get("schema_version")
    except (ValueError, AttributeError) as error:
        raise UserError("statistics.json is not valid JSON", where=str(folder)) from error
    if version != SCHEMA_VERSION:
        raise UserError(f"schema version {version}, this version reads {SCHEMA_VERSION}", where=str(folder))
    return folder


class EpisodeStore:
    """Random access to a store's episodes, in the order they were written.

    Raises:
        UserError: no store at `path`, or a shard that is not Parquet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = resolve_store(path)
        self.statistics: dict[str, Any] = json.loads(
            (self.path / "statistics.json").read_text(encoding="utf-8")
        )
        self.shards = sorted(self.path.glob("shard-*.parquet"))
        self._places: list[tuple[Path, int]] = []
        self.ids: list[str] = []
        self.group_ids: list[str] = []
        self.instructions: list[str] = []
        self.lengths: list[int] = []
        for shard in self.shards:
            table = self._read(shard, lambda file: file.read(columns=list(INDEX_COLUMNS)))
            self._places += [(shard, row) for row in range(table.num_rows)]
            self.ids += table["episode_id"].to_pylist()
            self.group_ids += table["group_id"].to_pylist()
            self.instructions += table["instruction"].to_pylist()
            self.lengths += table["length"].to_pylist()
        self._index = {name: number for number, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(number) for number in range(len(self)))

    def read(self, which: int | str) -> Episode:
        """One episode, by position or id, video decoded.

        Raises:
            UserError: no such episode.
            EpisodeError: its video does not decode.
        """
        number = self._index.get(which, -1) if isinstance(which, str) else which
        if not 0 <= number < len(self):
            raise UserError(
                f"no episode {which!r}", where=str(self.path), remedy=f"it holds {len(self)} episodes"
            )
        shard, row = self._places[number]
        table = self._read(shard, lambda file: file.read_row_group(row // ROW_GROUP))
        return row_to_episode(table.slice(row % ROW_GROUP, 1).to_pylist()[0])

    def split(self, name: str, fraction: float | None = None) -> list[int]:
        """Positions of the episodes in a split.

        Args:
            name: "train" or "held_out".
            fraction: share of groups held out; None takes the one the statistics were made with.
        """
        wanted, share = check_split(name), fraction or float(self.statistics["held_out_fraction"])
        return [number for number, group in enumerate(self.group_ids) if split_of(group, share) == wanted]

    def actions(self, numbers: Iterable[int]) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
        """Actions float32 [T, A] and their names, of the episodes at these positions; reads no video."""
        wanted: dict[Path, list[int]] = {}
        for number in numbers:
            shard, row = self._places[number]
            wanted.setdefault(shard, []).append(row)
        for shard, rows in wanted.items():
            table = self._read(shard, lambda file: file.read(columns=["actions", "action_names"]))
            for row in rows:
                values = np.asarray(table["actions"][row].as_py(), dtype=np.float32)
                yield values, tuple(table["action_names"][row].as_py())

    def _read(self, shard: Path, reader: Any) -> pa.Table:
        try:
            with pq.ParquetFile(shard) as file:
                return reader(file)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"shard cannot be read ({reason})", where=str(shard)) from error


def open_store(path: str | Path) -> EpisodeStore:
    """The store at `path`; "shipped" opens the one inside the package."""
    return EpisodeStore(path)
