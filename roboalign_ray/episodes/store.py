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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.rows import (
    INDEX_COLUMNS,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    episode_to_row,
    row_to_episode,
)
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.splits import positions_in, split_of
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.shards import (
    STATISTICS,
    ShardedRows,
    ShardWriter,
    StoreCard,
    new_store,
    shards_of,
    write_json,
)

ROW_GROUP = 4  # episodes per Parquet row group: reading one episode reads this many


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
    statistics, quarantined = _Statistics(held_out_fraction), []
    seen: set[str] = set()
    with new_store(path, "an episode store", _is_store, overwrite=overwrite) as folder:
        writer = ShardWriter(folder, ROW_SCHEMA, shard_rows=shard_episodes, row_group=ROW_GROUP)
        for item in items:
            if isinstance(item, Quarantined):
                quarantined.append(item)
                continue
            if item.episode_id in seen:
                raise UserError(f"two episodes named '{item.episode_id}'", where=str(path))
            seen.add(item.episode_id)
            try:
                writer.add(episode_to_row(item, crf=crf, pixel_format=pixel_format))
            except EpisodeError as error:
                quarantined.append(Quarantined(item.episode_id, error.line()))
                continue
            statistics.add(item)
        if not statistics.lengths:
            first = f"; the first: {quarantined[0].reason}" if quarantined else ""
            raise UserError(f"no usable episode ({len(quarantined)} quarantined{first})", where=str(path))
        figures = statistics.as_json() | {"quarantined": len(quarantined)}
        write_json(folder / "quarantine.json", [asdict(item) for item in quarantined])
        size = writer.finish(figures, (card or StoreCard("Robot episodes")).text(_card_lines(figures)))
    return StoreSummary(path, figures["episodes"], figures["frames"], size, tuple(quarantined))


def _is_store(path: Path) -> bool:
    return (path / STATISTICS).is_file()


def _card_lines(figures: Mapping[str, Any]) -> list[str]:
    length = figures["length"]
    return [
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
    if not _is_store(folder):
        raise UserError(
            "no episode store here (statistics.json is missing)", where=str(folder), remedy=remedy
        )
    try:
        version = json.loads((folder / STATISTICS).read_text(encoding="utf-8")).get("schema_version")
    except (ValueError, AttributeError) as error:
        raise UserError("statistics.json is not valid JSON", where=str(folder)) from error
    if version != SCHEMA_VERSION:
        raise UserError(f"schema version {version}, this version reads {SCHEMA_VERSION}", where=str(folder))
    return folder


class EpisodeStore(ShardedRows[Episode]):
    """Random access to a store's episodes, in the order they were written; `read` decodes video.

    Attributes:
        statistics: what statistics.json holds.
        ids, group_ids, instructions, lengths: one per episode.

    Raises:
        UserError: no store at `path`, or a shard that is not Parquet.
    """

    def __init__(self, path: str | Path) -> None:
        folder = resolve_store(path)
        self.statistics: dict[str, Any] = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
        super().__init__(
            folder, shards_of(folder), columns=INDEX_COLUMNS, what="episode", decode=row_to_episode
        )
        self.group_ids: list[str] = self.index["group_id"]
        self.instructions: list[str] = self.index["instruction"]
        self.lengths: list[int] = self.index["length"]

    def split(self, name: str, fraction: float | None = None) -> list[int]:
        """Positions of the episodes in a split.

        Args:
            name: "train" or "held_out".
            fraction: share of groups held out; None takes the one the statistics were made with.
        """
        share = float(self.statistics["held_out_fraction"]) if fraction is None else fraction
        return positions_in(name, self.group_ids, share)

    def actions(self, numbers: Iterable[int]) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
        """Actions float32 [T, A] and their names, of the episodes at these positions; reads no video."""
        for cells in self.cells(numbers, ("actions", "action_names")):
            yield np.asarray(cells["actions"], dtype=np.float32), tuple(cells["action_names"])

    def successes(self) -> list[int | None]:
        """First frame of each episode in which its task counts as done; None where it never does, or is not known.
        Reads no video."""
        cells = self.cells(range(len(self)), ("episode_id", "success_per_frame"))
        flags = {cell["episode_id"]: cell["success_per_frame"] or [] for cell in cells}
        return [next((n for n, done in enumerate(flags[name]) if done), None) for name in self.ids]


def open_store(path: str | Path) -> EpisodeStore:
    """The store at `path`; "shipped" opens the one inside the package."""
    return EpisodeStore(path)
