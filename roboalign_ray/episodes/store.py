"""The episode store: a folder of Parquet shards with encoded video, statistics and a card.

    store/
      shard-00000.parquet    one row per episode (see `rows.py` for the columns)
      statistics.json        schema version, counts, lengths, and the action card's fields
      quarantine.json        episodes that could not be used, each with its reason
      README.md              the dataset card

A store is written beside its place and moved there when complete, so readers never see an incomplete one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config.paths import SHIPPED_STORES, shipped_or_folder
from roboalign_ray.episodes.action_card import Bounds
from roboalign_ray.episodes.action_kinds import ActionKind, check_stride, names_of
from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.rows import (
    INDEX_COLUMNS,
    OPTIONAL_COLUMNS,
    READ_SCHEMA,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    episode_to_row,
    kinds_of_row,
    row_to_episode,
)
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.splits import positions_in
from roboalign_ray.episodes.statistics_form import StatisticsForm
from roboalign_ray.episodes.store_statistics import StoreStatistics, common_kind
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.readers import read_object, validated
from roboalign_ray.foundation.storage.shards import (
    STATISTICS,
    ShardedRows,
    ShardWriter,
    StoreCard,
    new_store,
    shards_of,
    write_json,
)

_KIND_COLUMNS = ("action_names", "action_kinds", "angle_dims")  # the last one only in older stores
ROW_GROUP = 4  # episodes per Parquet row group; reading one episode reads all of its row group


@dataclass(frozen=True)
class StoreSummary:
    """Result of writing a store.

    Attributes:
        path: the store.
        episodes, frames, bytes: totals; bytes of all files.
        quarantined: episodes left out, each with its reason.
        held_out: number of episodes that are held out.
        notes: findings during writing, one line each.
    """

    path: Path
    episodes: int
    frames: int
    bytes: int
    quarantined: tuple[Quarantined, ...]
    held_out: int
    notes: tuple[str, ...] = ()


def write_store(
    items: Iterable[Episode | Quarantined],
    path: Path,
    *,
    card: StoreCard | None = None,
    shard_episodes: int = 64,
    held_out_fraction: float = 0.1,
    crf: int = 18,
    pixel_format: str = "yuv444p",
    action_bounds: Sequence[Bounds | None] = (),
    overwrite: bool = False,
) -> StoreSummary:
    """Write episodes as they arrive; memory holds one shard. Nothing appears at `path` before everything is written.

    Args:
        items: episodes, and `Quarantined` for those that cannot be used.
        path: the store's folder.
        card: content of the dataset card.
        shard_episodes: number of episodes per Parquet file.
        held_out_fraction: share of groups that the action statistics exclude.
        crf, pixel_format: video quality, see `encode_video`.
        action_bounds: minimum and maximum per action dimension, as stated by the source; if omitted, unknown.
        overwrite: replace an existing store.

    Raises:
        UserError: the folder exists and may not be replaced, two episodes share an id, or no episode is usable.
    """
    path = Path(path)
    statistics, quarantined = StoreStatistics(held_out_fraction, action_bounds), []
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
    held_out = figures["splits"].get("held_out", 0)
    return StoreSummary(path, figures["episodes"], figures["frames"], size, tuple(quarantined), held_out)


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
    """The folder of a store; `SHIPPED_STORES` names those inside the package.

    Raises:
        UserError: there is no store, or this version does not read its schema.
    """
    folder = shipped_or_folder(path, SHIPPED_STORES)
    remedy = "make one with: roboalign episodes generate, or roboalign episodes convert"
    if str(path) == "shipped_two_views":
        remedy = (
            "make it with: roboalign episodes generate runs/two_views --profile demo_diffusion, and set "
            "episodes.store=runs/two_views"
        )
    if not _is_store(folder):
        lacks = folder_fault(folder, "no episode store here (statistics.json is missing)")
        raise UserError(lacks, where=str(folder), remedy=remedy)
    version = read_object(folder / STATISTICS, "store statistics").get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"schema version {version}, this version reads {SCHEMA_VERSION}", where=str(folder))
    return folder


class EpisodeStore(ShardedRows[Episode]):
    """Random access to a store's episodes, in the order of writing; `read` decodes video.

    Attributes:
        statistics: content of statistics.json.
        ids, group_ids, instructions, lengths: one per episode.

    Raises:
        UserError: there is no store at `path`, or a file of it is damaged, missing or of another store.
    """

    def __init__(self, path: str | Path) -> None:
        folder = resolve_store(path)
        statistics = folder / STATISTICS
        self.statistics: dict[str, Any] = read_object(statistics, "store statistics")
        validated(self.statistics, StatisticsForm, "store statistics", where=str(statistics))
        super().__init__(
            folder,
            shards_of(folder),
            columns=INDEX_COLUMNS,
            what="episode",
            decode=self._episode,
            schema=READ_SCHEMA,
            optional=OPTIONAL_COLUMNS,
        )
        if len(self) != (count := self.statistics["episodes"]):
            raise UserError(
                f"holds {len(self)} of {count} episodes",
                where=str(folder),
                remedy="copy the store again, whole",
            )
        self.group_ids: list[str] = self.index["group_id"]
        self.instructions: list[str] = self.index["instruction"]
        self.lengths: list[int] = self.index["length"]

    def split(self, name: str, fraction: float | None = None) -> list[int]:
        """Positions of the episodes in a split.

        Args:
            name: "train" or "held_out".
            fraction: share of groups held out; None takes that of the statistics.
        """
        share = float(self.statistics["held_out_fraction"]) if fraction is None else fraction
        return positions_in(name, self.group_ids, share)

    def actions(
        self, numbers: Iterable[int]
    ) -> Iterator[tuple[np.ndarray, tuple[str, ...], tuple[ActionKind, ...]]]:
        """Actions float32 [T, A], their names and kinds, of the episodes at these positions; reads no video."""
        for cells in self.cells(numbers, ("actions", *_KIND_COLUMNS)):
            actions = np.asarray(cells["actions"], dtype=np.float32)
            names = names_of(cells["action_names"], actions.shape[1])
            yield actions, names, self._kinds(cells, actions.shape[1])

    def action_dimensions(self) -> dict[int, tuple[tuple[str, ...], tuple[ActionKind, ...]]]:
        """Names and kinds of the actions, by their number of dimensions; "unknown" if episodes differ."""
        known = {int(dims): figures for dims, figures in self.statistics["actions"].items()}
        if any("kinds" not in figures for figures in known.values()):  # written before kinds were stored
            gathered: dict[int, tuple[tuple[str, ...], tuple[ActionKind, ...]]] = {}
            for actions, names, kinds in self.actions(range(len(self))):
                before = gathered.get(actions.shape[1], (names, kinds))[1]
                merged = tuple(common_kind(*pair) for pair in zip(before, kinds, strict=True))
                gathered[actions.shape[1]] = names, merged
            return gathered
        return {
            dims: (names_of(figures["names"], dims), tuple(figures["kinds"]))
            for dims, figures in known.items()
        }

    def _kinds(self, row: Mapping[str, Any], dims: int) -> tuple[ActionKind, ...]:
        """The kinds declared for the whole store, else those of the row."""
        figures = self.statistics["actions"].get(str(dims), {})
        if figures.get("declared"):
            return tuple(figures["kinds"])
        return kinds_of_row(row, dims)

    def _episode(self, row: Mapping[str, Any]) -> Episode:
        dims = len(row["actions"][0]) if row["actions"] else 0
        return row_to_episode({**row, "action_kinds": self._kinds(row, dims)})

    def successes(self) -> list[int | None]:
        """First frame of each episode in which its task is completed; None if it never is, or if this is unknown. Reads
        no video."""
        cells = self.cells(range(len(self)), ("episode_id", "success_per_frame"))
        flags = {cell["episode_id"]: cell["success_per_frame"] or [] for cell in cells}
        return [next((n for n, done in enumerate(flags[name]) if done), None) for name in self.ids]


def check_action_kinds(store: EpisodeStore, stride: int) -> None:
    """Refuse to read every `stride`-th frame of a store whose actions cannot be combined over skipped frames.

    Raises:
        UserError: the kind of a dimension is unknown, or its numbers cannot be added.
    """
    if stride == 1:
        return
    for names, kinds in store.action_dimensions().values():
        remedy = f"use frame_stride=1, or say so with: roboalign episodes declare {store.path}"
        check_stride(names, kinds, stride, where=str(store.path), remedy=remedy)


def open_store(path: str | Path) -> EpisodeStore:
    """The store at `path`; `SHIPPED_STORES` names those inside the package."""
    return EpisodeStore(path)
