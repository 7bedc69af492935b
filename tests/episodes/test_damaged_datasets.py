"""Thousands of damaged files over all readers of sources: each is read, set aside or refused in a line, at low cost.

The damage follows from a seed, so a failure names what makes it again.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corruption import damaged_file, measured
from episode_files import (
    CAMERA,
    clip,
    lerobot_info,
    lerobot_rows,
    png,
    write_droid,
    write_lerobot_v2,
    write_lerobot_v3,
    write_rlds,
)

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.folder import open_folder
from roboalign_ray.foundation.failures import UserError

MOST_SECONDS, MOST_MEGABYTES = 5.0, 512.0
LENGTH = 3


def _v3(folder: Path) -> None:
    lerobot_info(folder, "v3.0", 2)
    write_lerobot_v3(
        folder, [clip(LENGTH), clip(LENGTH, 1)], [lerobot_rows(0, LENGTH), lerobot_rows(1, LENGTH)]
    )


def _pictures(folder: Path) -> None:
    """v2 with pictures in the table of episode 0 and by path in episode 1."""
    write_lerobot_v2(folder, [LENGTH, LENGTH])
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][CAMERA]["dtype"] = "image"
    (folder / "meta/info.json").write_text(json.dumps(info))
    for episode in range(2):
        path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        cells = []
        for number, frame in enumerate(clip(LENGTH, episode)):
            name = f"images/{episode}_{number}.png"
            (folder / "images").mkdir(exist_ok=True)
            (folder / name).write_bytes(png(frame))
            cells.append({"bytes": None if episode else png(frame), "path": name})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pq.read_table(path).append_column(CAMERA, pa.array(cells, kind)), path)
    (folder / "meta/tasks.jsonl").write_text(
        '{"task_index": 0, "task": "stack"}\n{"task_index": 1, "task": "push"}\n'
    )


def _rlds(folder: Path) -> None:
    write_rlds(folder, [LENGTH, LENGTH])
    split = {"name": "train", "shardLengths": ["2"], "numBytes": "1"}
    (folder / "dataset_info.json").write_text(json.dumps({"name": "bridge_dataset", "splits": [split]}))


def read(folder: Path) -> list[Episode | Quarantined]:
    return list(open_folder(folder).episodes())


KINDS = {
    "lerobot v2": lambda folder: write_lerobot_v2(folder, [LENGTH, LENGTH]),
    "lerobot v2 pictures": _pictures,
    "lerobot v3": _v3,
    "rlds": _rlds,
    "droid": lambda folder: write_droid(folder, [LENGTH, LENGTH]),
}


def _damage(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """Damage one file after the other; each is whole again before the next one is damaged."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        path = rng.choice(files)
        original = path.read_bytes()
        way, changed = damaged_file(path, rng)
        path.write_bytes(changed)
        yield f"number {number}, seed {seed}: {path.relative_to(folder)} by {way}", path
        path.write_bytes(original)


def _check(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Read after every damage; counts of what came of it."""
    counts: Counter[str] = Counter()
    whole = read(folder)
    assert all(isinstance(item, Episode) for item in whole)
    for what, _ in _damage(folder, count, seed):
        cost = measured(lambda: read(folder))
        assert cost.error is None or isinstance(cost.error, UserError), (what, repr(cost.error))
        assert cost.seconds < MOST_SECONDS, (what, cost.seconds)
        assert cost.megabytes < MOST_MEGABYTES, (what, cost.megabytes)
        counts["files"] += 1
        if cost.error is not None:
            assert "\n" not in str(cost.error), what
            counts["refused"] += 1
            continue
        assert all(isinstance(item, Episode | Quarantined) for item in cost.result), what
        bad = [item.reason for item in cost.result if isinstance(item, Quarantined)]
        assert not any("unforeseen" in reason or "\n" in reason for reason in bad), (what, bad)
        counts["quarantined" if bad else "read"] += 1
    after = read(folder)
    assert [_numbers(item) for item in after] == [_numbers(item) for item in whole]
    return counts


def _numbers(item: Episode) -> list[int]:
    return [int(frames.astype(np.int64).sum()) for frames in item.frames.values()]


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_set_aside_or_refused(name, tmp_path):
    KINDS[name](tmp_path)
    counts = _check(tmp_path, 50)
    assert counts["files"] == 50
    assert counts["quarantined"] + counts["refused"] > 10


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path, capsys):
    total: Counter[str] = Counter()
    for number, (name, kind) in enumerate(KINDS.items(), 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        kind(folder)
        counts = _check(folder, 400, seed=number)
        with capsys.disabled():
            print(f"{name}: {dict(counts)}")
        total += counts
    assert total["files"] >= 2000


@pytest.mark.parametrize("name", ["lerobot v2", "droid"])
def test_damage_to_one_episode_leaves_the_other_as_it_was(name, tmp_path):
    KINDS[name](tmp_path)
    _, second = read(tmp_path)
    first_files = [
        path
        for path in sorted(tmp_path.rglob("*"))
        if path.is_file() and ("000000" in path.name or "train/0" in str(path.relative_to(tmp_path)))
    ]
    rng = random.Random(7)
    for path in first_files * 6:
        original = path.read_bytes()
        path.write_bytes(damaged_file(path, rng)[1])
        _, again = read(tmp_path)
        assert again.episode_id == second.episode_id
        assert np.array_equal(again.actions, second.actions)
        for view, frames in second.frames.items():
            assert np.array_equal(again.frames[view], frames)
        path.write_bytes(original)
