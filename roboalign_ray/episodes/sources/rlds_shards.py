"""Shards of an RLDS dataset: present and missing files, and their expected numbers of records."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign_ray.episodes.sources.base import opened
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.foundation.failures import UserError, raise_if_host

# <dataset>-<split>.tfrecord-<shard>-of-<shards>: the default of TensorFlow Datasets.
_NUMBERED = re.compile(r"(?P<split>.+)\.tfrecord-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})")
_MOST_MISSING = 1000  # limit on missing shards that are listed one by one


@dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        path: where it is.
        label: its part in the episodes' ids, such as "train-00000-of-00004".
        records: expected number; None if dataset_info.json does not have it.
    """

    path: Path
    label: str
    records: int | None = None


@dataclass(frozen=True)
class Shards:
    """The shards of a dataset.

    Attributes:
        name: name of the dataset.
        present: present shards, in the order of their names.
        missing: labels of missing shards, by the numbers in the others' names.
        absent_splits: splits of dataset_info.json that have no shard here.
    """

    name: str
    present: tuple[Shard, ...]
    missing: tuple[str, ...]
    absent_splits: tuple[str, ...] = ()


def find_shards(folder: DatasetFolder) -> Shards:
    """The shards of a folder.

    Raises:
        UserError: there is no shard, one is compressed, or one leads out of the folder.
    """
    names = sorted(path.name for path in folder.root.iterdir() if ".tfrecord" in path.name)
    if not names:
        raise UserError("holds no *.tfrecord* shard", where=str(folder.root))
    for name in names:
        if name.endswith((".gz", ".zlib", ".zst")):
            raise UserError("compressed shards are not read", where=name, remedy="unpack the file first")
    dataset = names[0].split(".tfrecord")[0].rsplit("-", 1)[0]
    lengths = _stated_lengths(folder.root / "dataset_info.json")
    present: list[Shard] = []
    splits = set()
    for name in names:
        match = _NUMBERED.fullmatch(name)
        split = match["split"].rsplit("-", 1)[-1] if match else ""
        splits.add(split)
        stated = lengths.get(split, [])
        number = int(match["number"]) if match else 0
        records = stated[number] if match and int(match["count"]) == len(stated) > number else None
        present.append(Shard(folder.file(name, "shard"), _label(name, dataset), records))
    absent = tuple(split for split in lengths if split not in splits)
    missing = tuple(_label(name, dataset) for name in _missing(names))
    return Shards(dataset, tuple(present), missing, absent)


def _label(name: str, dataset: str) -> str:
    return name.removeprefix(dataset).lstrip("-").replace(".tfrecord", "")


def _missing(names: list[str]) -> Iterator[str]:
    """Names of missing shards, by the numbers of the others."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for match in filter(None, map(_NUMBERED.fullmatch, names)):
        found[match["split"], match["count"]].add(int(match["number"]))
    listed = 0
    for (split, count), numbers in sorted(found.items()):
        for number in range(int(count)):
            if number in numbers:
                continue
            listed += 1
            if listed > _MOST_MISSING:
                return
            yield f"{split}.tfrecord-{number:0{len(count)}d}-of-{count}"


def _stated_lengths(path: Path) -> dict[str, list[int]]:
    """Number of records of every shard by split, from dataset_info.json; {} without such a file.

    Raises:
        UserError: the file is not JSON of that layout.
    """
    if not path.is_file():
        return {}
    try:
        return {
            str(split["name"]): _counts(split) for split in json.loads(read_small(path)).get("splits", [])
        }
    except Exception as error:  # damaged JSON may raise anything
        raise_if_host(error, where=str(path))
        raise opened("an RLDS dataset_info", path, error) from error


def _counts(split: dict[str, Any]) -> list[int]:
    return [int(length) for length in split.get("shardLengths", [])]
