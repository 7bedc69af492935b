"""Bad input to `roboalign episodes`: one line on stderr, exit code 2, nothing left where the store should stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from episode_files import (
    CAMERA,
    clip,
    lerobot_info,
    lerobot_rows,
    write_droid,
    write_lerobot_v2,
    write_lerobot_v3,
    write_rlds,
)
from refusals import refused

from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert


@dataclass(frozen=True)
class Bad:
    """One kind of bad input.

    Attributes:
        prepare: makes the files, given an empty folder.
        arguments: what is typed after `roboalign episodes`, "{}" standing for the folder.
        clue: what the line must say.
    """

    prepare: Callable[[Path], object]
    arguments: str
    clue: str


def nothing(folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    (folder / "set").mkdir()


def a_file(folder: Path) -> None:
    (folder / "set").write_text("not a folder")


def strangers(folder: Path) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "holiday.jpg").write_bytes(b"...")


def lerobot(folder: Path) -> None:
    write_lerobot_v2(folder / "set", [4, 4])


def droid(folder: Path) -> None:
    write_droid(folder / "set", [4])


def beside_a_folder(folder: Path) -> None:
    lerobot(folder)
    (folder / "store").mkdir()
    (folder / "store" / "thesis.txt").write_text("two years of work")


def beside_a_file(folder: Path) -> None:
    lerobot(folder)
    (folder / "store").write_text("a file")


def corrupt_tables(folder: Path) -> None:
    lerobot_info(folder / "set", "v3.0", 1)
    write_lerobot_v3(folder / "set", [clip(4)], [lerobot_rows(0, 4)])
    (folder / "set/meta/episodes/chunk-000/file-000.parquet").write_bytes(b"PAR1 broken PAR1")


def truncated_info(folder: Path) -> None:
    lerobot(folder)
    (folder / "set/meta/info.json").write_text('{"codebase_version": "v2.1", ')


def all_bad(folder: Path) -> None:
    lerobot(folder)
    for video in (folder / "set/videos").rglob("*.mp4"):
        video.write_bytes(b"no video")


def unknown_rate(folder: Path) -> None:
    write_rlds(folder / "set", [4], name="my_own")


def broken_features(folder: Path) -> None:
    write_rlds(folder / "set", [4])
    (folder / "set/features.json").write_text('{"featuresDict": 3}')


def store(folder: Path) -> None:
    lerobot(folder)
    convert(folder / "set", folder / "store", ConvertOptions())


def newer_store(folder: Path) -> None:
    store(folder)
    statistics = json.loads((folder / "store/statistics.json").read_text())
    (folder / "store/statistics.json").write_text(json.dumps(statistics | {"schema_version": 99}))


def damaged_store(folder: Path) -> None:
    store(folder)
    shard = folder / "store/shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:500])


def foreign_shard(folder: Path) -> None:
    store(folder)
    shard = folder / "store/shard-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns(["fps"]), shard)


CONVERT = "convert {}/set {}/store -q"
BAD = {
    "missing source": Bad(nothing, CONVERT, "no such folder"),
    "source is a file": Bad(a_file, CONVERT, "is a file"),
    "empty source": Bad(empty, CONVERT, "the folder is empty"),
    "no known format": Bad(strangers, CONVERT, "no known episode format"),
    "unknown format": Bad(lerobot, f"{CONVERT} --format lerobt", "did you mean 'lerobot'?"),
    "another format than said": Bad(droid, f"{CONVERT} --format rlds", "is a droid dataset, not rlds"),
    "corrupt episode tables": Bad(corrupt_tables, CONVERT, "Parquet file cannot be read"),
    "truncated info.json": Bad(truncated_info, CONVERT, "meta/info.json"),
    "broken features.json": Bad(broken_features, CONVERT, "cannot be read as RLDS features"),
    "rate not known": Bad(unknown_rate, CONVERT, "give it with --source-fps"),
    "rate given twice": Bad(lerobot, f"{CONVERT} --source-fps 5", "states its own frame rate"),
    "every episode quarantined": Bad(all_bad, CONVERT, "no usable episode (2 quarantined"),
    "unknown view": Bad(lerobot, f"{CONVERT} --view frnt", "views: front"),
    "negative size": Bad(lerobot, f"{CONVERT} --height -4", "height is -4"),
    "size is no number": Bad(lerobot, f"{CONVERT} --width wide", "--width"),
    "unknown fit": Bad(lerobot, f"{CONVERT} --height 8 --fit squash", "stretch, crop, pad"),
    "stride zero": Bad(lerobot, f"{CONVERT} --stride 0", "stride is 0"),
    "stride longer than the episodes": Bad(
        lerobot, f"{CONVERT} --stride 9 --action-kind absolute*4", "too few for stride 9"
    ),
    "stride of unknown actions": Bad(lerobot, f"{CONVERT} --stride 2", "it is not known what a, b, c are"),
    "rate no number": Bad(lerobot, f"{CONVERT} --fps nan", "--fps: frame rate is nan"),
    "rate without end": Bad(lerobot, f"{CONVERT} --fps inf", "--fps: frame rate is inf"),
    "source's rate no number": Bad(unknown_rate, f"{CONVERT} --source-fps nan", "--source-fps"),
    "stride and rate": Bad(lerobot, f"{CONVERT} --stride 2 --fps 5", "--fps"),
    "rate that does not divide": Bad(lerobot, f"{CONVERT} --fps 4", "does not divide"),
    "limit zero": Bad(lerobot, f"{CONVERT} --limit 0", "limit is 0"),
    "held out more than all": Bad(lerobot, f"{CONVERT} --held-out 1.5", "between 0 and 1"),
    "unknown option": Bad(lerobot, f"{CONVERT} --hieght 8", "--hieght"),
    "store exists": Bad(beside_a_folder, CONVERT, "already exists; choose another place, or add --overwrite"),
    "overwriting what is no store": Bad(beside_a_folder, f"{CONVERT} --overwrite", "not an episode store"),
    "store is a file": Bad(beside_a_file, f"{CONVERT} --overwrite", "store"),
    "store below a file": Bad(beside_a_file, "convert {}/set {}/store/deep -q", "is a file, not a folder"),
    "inspect no store": Bad(strangers, "inspect {}/set", "no episode store here"),
    "inspect nothing": Bad(nothing, "inspect {}/set", "no such folder"),
    "inspect a newer store": Bad(newer_store, "inspect {}/store", "schema version 99"),
    "inspect a damaged shard": Bad(damaged_store, "inspect {}/store", "shard-00000.parquet"),
    "inspect a foreign shard": Bad(foreign_shard, "inspect {}/store", "Parquet file cannot be read"),
    "inspect an unknown episode": Bad(store, "inspect {}/store --out {}/a.png --episode x", "no episode 'x'"),
    "sheet is no png": Bad(store, "inspect {}/store --out {}/sheet.pdf", ".png"),
    "sheet in no folder": Bad(store, "inspect {}/store --out {}/no/sheet.png", "cannot be written"),
    "sheet without columns": Bad(store, "inspect {}/store --out {}/a.png --columns 0", "--columns is 0"),
    "unknown setting": Bad(nothing, "generate {}/store --set framse=8", "did you mean 'frames'?"),
    "setting of a wrong type": Bad(nothing, "generate {}/store --set frames=many", "simulation.frames"),
    "setting without a value": Bad(nothing, "generate {}/store --set frames", "is not key=value"),
    "negative frames": Bad(nothing, "generate {}/store --frames -1", "simulation.frames"),
    "unknown profile": Bad(nothing, "generate {}/store --profile demoo", "did you mean 'demo'?"),
    "simulating over a folder": Bad(beside_a_folder, "generate {}/store", "already exists"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_line_exit_code_two_and_nothing_half_written(kind, tmp_path, capfd):
    bad = BAD[kind]
    bad.prepare(tmp_path)
    words = [word.replace("{}", str(tmp_path)) for word in bad.arguments.split()]
    assert bad.clue in refused(["episodes", *words], tmp_path, capfd)


@pytest.mark.parametrize(
    ("arguments", "clue"), [("--task drawer-opne", "drawer-open"), ("--variant expret", "expert")]
)
def test_unknown_simulation_names_are_told_the_nearest(tmp_path, capfd, arguments, clue):
    pytest.importorskip("metaworld")
    words = ["episodes", "generate", str(tmp_path / "store"), *arguments.split()]
    assert clue in refused(words, tmp_path, capfd)


@pytest.mark.parametrize(("share", "warned"), [("1e-9", True), ("0.999999", False)])
def test_a_store_without_a_held_out_episode_is_warned_of(share, warned, tmp_path, capfd):
    lerobot(tmp_path)
    words = ["convert", str(tmp_path / "set"), str(tmp_path / "store"), "--held-out", share]
    assert run(["episodes", *words]) == 0
    out, _ = capfd.readouterr()
    assert f"{0 if warned else 2} held out, 0 quarantined" in out
    assert ("warning: no episode is held out" in " ".join(out.split())) is warned
    assert run(["episodes", "inspect", str(tmp_path / "store")]) == 0
    assert ("held_out: 0" in capfd.readouterr().out) is warned
    assert run(["episodes", *words, "--overwrite", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["held_out"] == (0 if warned else 2)


def test_a_bad_episode_is_no_bad_input(tmp_path, capfd):
    """One corrupt video among good ones: exit code 0, and the count is shown."""
    lerobot(tmp_path)
    (tmp_path / f"set/videos/chunk-000/{CAMERA}/episode_000001.mp4").write_bytes(b"no video")
    assert run(["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "store")]) == 0
    out, _ = capfd.readouterr()
    assert "1 episode," in out
    assert "1 quarantined" in out
