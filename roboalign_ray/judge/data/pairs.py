"""Judged pairs (a video, the instruction it should follow, and six scores) and their store.

    pairs/
      shard-00000.parquet    one row per pair, its video encoded
      statistics.json        schema version, counts, label histograms
      README.md              the dataset card

As in the episode store, a store is complete or absent, and the split is by a hash of the group id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.splits import positions_in, split_of
from roboalign_ray.episodes.video import decode_video, encode_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.readers import parse_json, pick, read_object
from roboalign_ray.foundation.storage.shards import (
    STATISTICS,
    ShardedRows,
    ShardWriter,
    StoreCard,
    new_store,
    shards_of,
)
from roboalign_ray.judge.rubric import DIMENSIONS, check_scores, names

SCHEMA_VERSION = 1
CONTENT = "judged pairs"
HISTOGRAM_STEP = 0.5  # points; the card's histograms use scores rounded to this step
ROW_GROUP = 16  # pairs per Parquet row group: reading one pair reads this many
_INDEX = ("pair_id", "group_id", "kind", "annotator", "instruction", "length", "scores")

ROW_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("group_id", pa.string()),
        ("kind", pa.string()),
        ("annotator", pa.string()),
        ("instruction", pa.string()),
        ("length", pa.int32()),
        ("fps", pa.float64()),
        ("scores", pa.list_(pa.float32(), len(DIMENSIONS))),
        ("provenance", pa.string()),
        ("video", pa.large_binary()),
    ],
    metadata={"roboalign_ray.pairs_schema_version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True)
class JudgedPair:
    """One labelled video.

    Attributes:
        pair_id: unique within its store.
        group_id: group of the source episode; a split never separates a group.
        frames: uint8 [T, H, W, 3] RGB.
        fps: frames per second.
        instruction: the instruction that the video is judged by.
        scores: float32 [6], rubric points in the order of `rubric.DIMENSIONS`, all known.
        annotator: source of the scores: "degradation", "privileged", "simulator", a teacher's name, a person.
        kind: kind of the video, such as "real", "degraded/blur", "rollout/swr", "counterfactual/wander".
        provenance: source episode, frames, settings (JSON types only).

    Raises:
        UserError: on construction, if frames, instruction or scores are invalid.
    """

    pair_id: str
    group_id: str
    frames: np.ndarray
    fps: float
    instruction: str
    scores: np.ndarray
    annotator: str
    kind: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"pair '{self.pair_id}'"
        frames = self.frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise UserError(f"frames are {frames.dtype} {frames.shape}, not uint8 [T, H, W, 3]", where=where)
        if not self.instruction.strip():
            raise UserError("has no instruction", where=where, remedy="a video is judged against a sentence")
        if not self.fps > 0:
            raise UserError(f"fps is {self.fps}", where=where)
        scores = check_scores(self.scores, where)
        if scores.ndim != 1:
            raise UserError(f"scores have shape {scores.shape}, not [{len(DIMENSIONS)}]", where=where)
        object.__setattr__(self, "scores", scores)

    @property
    def total(self) -> float:
        """Sum of the scores, 0 to 10."""
        return float(self.scores.sum(dtype=np.float64))


@dataclass(frozen=True)
class PairsSummary:
    """Summary of a written store: its path, number of pairs, bytes of all files, and its statistics."""

    path: Path
    pairs: int
    bytes: int
    statistics: Mapping[str, Any]


def encode_pair(pair: JudgedPair, *, crf: int = 18, pixel_format: str = "yuv444p") -> dict[str, Any]:
    """The pair as a row of `ROW_SCHEMA`, with its video encoded.

    Raises:
        EpisodeError: the frames cannot be encoded.
        UserError: the provenance is not JSON.
    """
    try:
        provenance = json.dumps(dict(pair.provenance))
    except TypeError as error:
        raise UserError(f"provenance is not JSON ({error})", where=f"pair '{pair.pair_id}'") from error
    return {
        "pair_id": pair.pair_id,
        "group_id": pair.group_id,
        "kind": pair.kind,
        "annotator": pair.annotator,
        "instruction": pair.instruction,
        "length": len(pair.frames),
        "fps": float(pair.fps),
        "scores": pair.scores.tolist(),
        "provenance": provenance,
        "video": encode_video(pair.frames, pair.fps, crf=crf, pixel_format=pixel_format),
    }


def decode_pair(row: Mapping[str, Any]) -> JudgedPair:
    """The pair of a row, with its video decoded.

    Raises:
        EpisodeError: the video cannot be decoded.
    """
    try:
        frames = decode_video(row["video"])
    except EpisodeError as error:
        raise EpisodeError(error.what, where=f"pair '{row['pair_id']}'") from error
    return JudgedPair(
        pair_id=row["pair_id"],
        group_id=row["group_id"],
        frames=frames,
        fps=row["fps"],
        instruction=row["instruction"],
        scores=np.asarray(row["scores"], dtype=np.float32),
        annotator=row["annotator"],
        kind=row["kind"],
        provenance=parse_json(row["provenance"], where=f"pair '{row['pair_id']}'", what="provenance"),
    )


def write_pairs(
    pairs: Iterable[JudgedPair | Mapping[str, Any]],
    path: Path,
    *,
    card: StoreCard | None = None,
    shard_pairs: int = 512,
    held_out_fraction: float = 0.1,
    crf: int = 18,
    pixel_format: str = "yuv444p",
    overwrite: bool = False,
) -> PairsSummary:
    """Write a stream of pairs; memory holds one shard. The store appears at `path` when all pairs are written.

    Args:
        pairs: pairs, or rows of `encode_pair`.
        path: folder of the store.
        card: text of the dataset card besides the figures.
        shard_pairs: pairs per Parquet file.
        held_out_fraction: split used for the card's counts, and the default of `PairStore.split`.
        crf, pixel_format: video quality, see `encode_video`.
        overwrite: replace an existing store of pairs.

    Raises:
        UserError: the folder exists and may not be replaced, two pairs have the same id, or there are no pairs.
    """
    path = Path(path)
    figures = _Figures(held_out_fraction)
    with new_store(path, "a store of judged pairs", _is_store, overwrite=overwrite) as folder:
        writer = ShardWriter(folder, ROW_SCHEMA, shard_rows=shard_pairs, row_group=ROW_GROUP)
        for item in pairs:
            row = (
                encode_pair(item, crf=crf, pixel_format=pixel_format)
                if isinstance(item, JudgedPair)
                else item
            )
            figures.add(row, path)
            writer.add(row)
        if not figures.seen:
            raise UserError("no judged pair to write", where=str(path))
        statistics = figures.as_json()
        size = writer.finish(statistics, (card or StoreCard("Judged pairs")).text(_card_lines(statistics)))
    return PairsSummary(path, len(figures.seen), size, statistics)


class _Figures:
    """Counts and histograms, collected while rows are written."""

    def __init__(self, held_out_fraction: float) -> None:
        self.fraction = held_out_fraction
        self.seen: set[str] = set()
        self.groups: set[str] = set()
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in ("kinds", "annotators", "splits")}
        self.histograms: dict[str, Counter[float]] = {name: Counter() for name in (*names(), "total")}
        self.frames: Counter[int] = Counter()

    def add(self, row: Mapping[str, Any], path: Path) -> None:
        if row["pair_id"] in self.seen:
            raise UserError(f"two pairs named '{row['pair_id']}'", where=str(path))
        self.seen.add(row["pair_id"])
        self.groups.add(row["group_id"])
        self.counts["kinds"][row["kind"]] += 1
        self.counts["annotators"][row["annotator"]] += 1
        self.counts["splits"][split_of(row["group_id"], self.fraction)] += 1
        self.frames[int(row["length"])] += 1
        scores = [float(score) for score in row["scores"]]
        for name, score in zip((*names(), "total"), (*scores, sum(scores)), strict=True):
            self.histograms[name][round(score / HISTOGRAM_STEP) * HISTOGRAM_STEP] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "content": CONTENT,
            "schema_version": SCHEMA_VERSION,
            "pairs": len(self.seen),
            "groups": len(self.groups),
            "held_out_fraction": self.fraction,
            "lengths": {str(length): count for length, count in sorted(self.frames.items())},
            **{name: dict(sorted(counts.items())) for name, counts in self.counts.items()},
            "histograms": {
                name: {f"{score:g}": count for score, count in sorted(counts.items())}
                for name, counts in self.histograms.items()
            },
        }


def _card_lines(figures: Mapping[str, Any]) -> list[str]:
    splits = ", ".join(f"{name} {count}" for name, count in sorted(figures["splits"].items()))
    lines = [
        f"| pairs | {figures['pairs']} from {figures['groups']} groups of episodes |",
        f"| splits | {splits} (held out by group: {figures['held_out_fraction']:g}) |",
    ]
    for title, key in (("kind", "kinds"), ("annotator", "annotators")):
        lines += ["", f"| {title} | pairs |", "|---|---|"]
        lines += [f"| {name} | {count} |" for name, count in figures[key].items()]
    lines += ["", f"Labels, rounded to {HISTOGRAM_STEP:g} points:", ""]
    for name, counts in figures["histograms"].items():
        most = max(counts.values())
        lines += [f"    {name}"]
        lines += [
            f"    {score:>5} {count:>7} {'#' * round(40 * count / most)}" for score, count in counts.items()
        ]
    return lines


def _is_store(path: Path) -> bool:
    try:
        return read_object(path / STATISTICS, "pair statistics").get("content") == CONTENT
    except UserError:
        return False


class PairRows(ShardedRows[JudgedPair]):
    """Random access to the judged pairs of Parquet files. Opening it reads index and scores; `read` decodes video.

    Attributes:
        ids, group_ids, kinds, annotators, instructions: one per pair.
        lengths: frames per pair.
        scores: float32 [N, 6], rubric points.
    """

    def __init__(self, path: Path, shards: Iterable[Path]) -> None:
        super().__init__(path, shards, columns=_INDEX, what="pair", decode=decode_pair, schema=ROW_SCHEMA)

    def _load(self, shards: Iterable[Path]) -> None:
        super()._load(shards)
        self.group_ids: list[str] = self.index["group_id"]
        self.kinds: list[str] = self.index["kind"]
        self.annotators: list[str] = self.index["annotator"]
        self.instructions: list[str] = self.index["instruction"]
        self.lengths: list[int] = self.index["length"]
        self.scores = np.asarray(self.index["scores"], dtype=np.float32).reshape(-1, len(DIMENSIONS))


class PairStore(PairRows):
    """A store's judged pairs, in the order they were written.

    Attributes:
        statistics: content of statistics.json.

    Raises:
        UserError: there is no store of pairs at `path`, it has another schema, or a shard is not Parquet.
    """

    def __init__(self, path: str | Path) -> None:
        folder = Path(path)
        remedy = "make one with: roboalign bench build"
        if not _is_store(folder):
            raise UserError(folder_fault(folder, "no judged pairs here"), where=str(folder), remedy=remedy)
        self.statistics: dict[str, Any] = read_object(
            folder / STATISTICS, "pair statistics", keys=("schema_version", "pairs", "held_out_fraction")
        )
        if (version := self.statistics.get("schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"schema version {version}, this version reads {SCHEMA_VERSION}", where=str(folder)
            )
        super().__init__(folder, shards_of(folder))
        if len(self) != (count := self.statistics.get("pairs")):
            raise UserError(f"holds {len(self)} of {count} pairs", where=str(folder))

    def split(self, name: str, fraction: float | None = None) -> list[int]:
        """Positions of the pairs in a split.

        Args:
            name: "train" or "held_out".
            fraction: share of groups held out; None uses the store's own share.
        """
        if fraction is None:
            where = str(self.path / STATISTICS)
            fraction = pick(self.statistics, "held_out_fraction", float, where=where, what="pair statistics")
        return positions_in(name, self.group_ids, fraction)


def open_pairs(path: str | Path) -> PairStore:
    """The judged pairs at `path`."""
    return PairStore(path)
