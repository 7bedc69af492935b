"""Which checkpoint a run goes on from, of those in its folder and their copies elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.checkpoints import CheckpointError
from roboalign_ray.pipelines.align.run_checkpoints import KEPT, RUN, RUN_FILE, RunCheckpoints

OURS, THEIRS = "a" * 32, "b" * 32


def write(step: int, text: str = "weights", run: str = OURS):
    def into(root: Path) -> Path:
        return checkpoints.save(
            root,
            step,
            lambda folder: (folder / "model").write_text(f"{text} {step}") and None,
            metadata={RUN: run},
            keep=KEPT,
        )

    return into


def text_of(kept: RunCheckpoints, *, copies: bool = True) -> str:
    found = kept.load(copies=copies)
    assert found is not None
    return (found.folder / "model").read_text()


def kept_at(folder: Path, name: str = "checkpoints") -> RunCheckpoints:
    return RunCheckpoints(folder / name, f"file://{folder / 'there'}")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def three(tmp_path, told) -> RunCheckpoints:
    """A run with checkpoints 1, 2 and 3, of which the last two are kept."""
    kept = RunCheckpoints(tmp_path / "out" / "checkpoints", tell=told.append)
    for step in (1, 2, 3):
        kept.save(write(step))
    return kept


def damage(folder: Path) -> None:
    (folder / "model").write_text("other")


def test_a_lost_folder_is_made_good_from_the_copies(tmp_path):
    kept = kept_at(tmp_path)
    assert not kept.begun()
    for step in (1, 2, 3):
        kept.save(write(step))
    shutil.rmtree(tmp_path / "checkpoints")
    assert kept.begun()
    assert text_of(kept) == "weights 3"
    assert sorted(checkpoints.complete(tmp_path / "checkpoints")) == [3]


def test_the_newer_one_wins_and_what_is_here_wins_a_tie(tmp_path):
    kept = kept_at(tmp_path)
    kept.save(write(1))
    kept_at(tmp_path, "elsewhere").save(write(2, "elsewhere"))
    assert text_of(kept) == "elsewhere 2"
    write(2, "here")(tmp_path / "checkpoints")
    assert text_of(kept) == "here 2"
    write(3, "here")(tmp_path / "checkpoints")  # older copies change nothing
    assert text_of(kept) == "here 3"


def test_without_copies_nothing_is_fetched(tmp_path):
    kept = RunCheckpoints(tmp_path / "checkpoints")
    assert not kept.begun()
    assert kept.load() is None
    assert kept.newest() is None
    kept.save(write(5))
    assert kept.begun()
    assert text_of(kept) == "weights 5"


def test_a_damaged_newest_one_falls_back_to_the_one_before_and_that_is_told(three, told):
    damage(three.folder / "step-00000003")
    assert text_of(three) == "weights 2"
    [line] = told
    assert "continues from step-00000002" in line
    assert str(three.folder / "step-00000003" / "model") in line
    assert "\n" not in line
    three.save(write(3, "again"))
    assert text_of(three) == "again 3"
    assert (three.folder / "unusable-step-00000003" / "model").read_text() == "other"  # nothing is lost
    assert len(told) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_where_none_is_whole_there_is_one_line(three, told, number):
    if number == 1:
        shutil.rmtree(three.folder / "step-00000002")
    for folder in three.folder.iterdir():
        damage(folder)
    with pytest.raises(CheckpointError) as caught:
        three.load()
    assert "step-00000003" in caught.value.line()
    assert "\n" not in caught.value.line()
    assert told == []
    assert len(list(three.folder.iterdir())) == number


def test_a_renamed_checkpoint_is_passed_over(three, told):
    (three.folder / "step-00000002").rename(three.folder / "step-00000009")
    assert text_of(three) == "weights 3"
    assert "renamed or swapped" in told[0]
    with pytest.raises(CheckpointError, match="renamed or swapped"):
        three.of_step(9)
    three.save(write(4))
    assert sorted(checkpoints.complete(three.folder)) == [3, 4]  # 9 does not take the place of a real one


def test_swapped_checkpoints_are_refused(three):
    one, other, aside = (three.folder / name for name in ("step-00000002", "step-00000003", "aside"))
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .*renamed or swapped"):
        three.load()


@pytest.mark.parametrize("step", [3, 4])
def test_a_checkpoint_of_another_run_is_passed_over(three, told, step):
    three.keep_id(three.load())
    shutil.rmtree(three.folder / "step-00000003")
    write(step, "theirs", THEIRS)(three.folder)
    kept = RunCheckpoints(three.folder, tell=told.append)
    assert kept.run == OURS
    assert text_of(kept) == "weights 2"
    assert "of another run" in told[0]


def test_a_moved_folder_takes_its_id_along_and_a_lost_one_takes_up_its_checkpoints(three, tmp_path):
    three.keep_id(three.load())
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert text_of(RunCheckpoints(tmp_path / "copy" / "checkpoints")) == "weights 3"
    (tmp_path / "copy" / "run.json").unlink()
    kept = RunCheckpoints(tmp_path / "copy" / "checkpoints")
    assert text_of(kept) == "weights 3"
    assert kept.run == OURS


def test_a_run_that_begins_has_an_id_of_its_own(tmp_path):
    ids = set()
    for _ in range(2):
        kept = RunCheckpoints(tmp_path / "checkpoints")
        kept.keep_id(None)
        ids |= {kept.run, RunCheckpoints(tmp_path / "checkpoints").run}
    assert len(ids) == 2


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"run": 3}', b'{"run": "../x"}', b"\xff", b"[" * 9000]
)
def test_a_damaged_id_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match="does not hold a run's id"):
        RunCheckpoints(tmp_path / "checkpoints")


def test_a_damaged_one_is_made_good_from_its_copy(tmp_path):
    kept = kept_at(tmp_path)
    kept.save(write(1))
    kept.save(write(2))
    damage(tmp_path / "checkpoints" / "step-00000002")
    assert text_of(kept) == "weights 2"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_copies_of_another_run_are_refused_before_anything_is_fetched(tmp_path, step):
    there = tmp_path / "there"
    other = RunCheckpoints(tmp_path / "elsewhere" / "checkpoints", f"file://{there}")
    other.save(write(step, "theirs", THEIRS))
    before = sorted(there.rglob("*"))
    kept = RunCheckpoints(tmp_path / "out" / "checkpoints", f"file://{there}")
    write(2)(kept.folder)
    kept.run = OURS
    with pytest.raises(CheckpointError, match="another run"):
        kept.load(copies=True)
    assert sorted(checkpoints.complete(kept.folder)) == [2]
    assert sorted(there.rglob("*")) == before


def test_a_copy_that_cannot_be_written_is_told_and_the_one_here_stands(tmp_path):
    kept = kept_at(tmp_path)
    (tmp_path / "there").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="cannot be read or written"):
        kept.save(write(4))
    assert text_of(kept, copies=False) == "weights 4"


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match="is a file, not the folder of checkpoints"):
        RunCheckpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("kind", ["folder", "pipe", "loose link", "text"])
def test_something_else_in_place_of_the_runs_id_is_one_line(kind, tmp_path):
    path = tmp_path / RUN_FILE
    made = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loose link": lambda: path.symlink_to(tmp_path / "nowhere"),
        "text": lambda: path.write_text("[" * 3000),
    }
    made[kind]()
    with pytest.raises(UserError, match="does not hold a run's id"):
        RunCheckpoints(tmp_path / "checkpoints")
