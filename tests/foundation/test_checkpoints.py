"""Checkpoints: complete or absent, and no damaged byte goes unnoticed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.checkpoints import CheckpointError

CONTENT = {"model.safetensors": b"weights" * 11, "state/buffer.json": b'{"position": 3}', "empty.bin": b""}


def write_content(folder: Path) -> None:
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("root"), 7, write_content, metadata={"version": 3})


def test_saved_files_come_back_verified(pristine: Path) -> None:
    checkpoint = checkpoints.load(pristine)
    assert (checkpoint.step, checkpoint.metadata) == (7, {"version": 3})
    assert {name: (checkpoint.folder / name).read_bytes() for name in CONTENT} == CONTENT


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_noticed_and_its_file_named(pristine: Path, data: st.DataObject) -> None:
    files = sorted(path for path in pristine.rglob("*") if path.is_file() and path.stat().st_size)
    victim = data.draw(st.sampled_from(files)).relative_to(pristine)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(pristine, Path(folder) / "copy"))
        content = bytearray((copy / victim).read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
        (copy / victim).write_bytes(content)
        if victim.name == checkpoints.MANIFEST and not content_differs(pristine / victim, copy / victim):
            return  # white space between JSON tokens carries nothing
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors|buffer\.json|empty\.bin|manifest\.json"
        ):
            checkpoints.load(copy)


def content_differs(one: Path, other: Path) -> bool:
    import json

    try:
        return json.loads(one.read_bytes()) != json.loads(other.read_bytes())
    except ValueError:
        return True


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(CONTENT)), length=st.integers(0, 200))
def test_a_torn_file_is_named(pristine: Path, name: str, length: int) -> None:
    if length == len(CONTENT[name]):
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(pristine, Path(folder) / "copy"))
        with (copy / name).open("r+b") as file:
            file.truncate(length)
        with pytest.raises(CheckpointError, match=name.rsplit("/", maxsplit=1)[-1]):
            checkpoints.load(copy)


@pytest.mark.parametrize("victim", [*CONTENT, checkpoints.MANIFEST])
def test_a_missing_file_is_named(pristine: Path, tmp_path: Path, victim: str) -> None:
    copy = Path(shutil.copytree(pristine, tmp_path / "copy"))
    (copy / victim).unlink()
    with pytest.raises(CheckpointError, match=victim.rsplit("/", maxsplit=1)[-1]):
        checkpoints.load(copy)


def test_a_foreign_file_is_refused(pristine: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pristine, tmp_path / "copy"))
    (copy / "stray.bin").write_bytes(b"?")
    with pytest.raises(CheckpointError, match=r"stray\.bin"):
        checkpoints.load(copy)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    first = checkpoints.save(tmp_path, 1, write_content)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError("disk full")

    for step in (1, 2):
        with pytest.raises(RuntimeError, match="disk full"):
            checkpoints.save(tmp_path, step, fail)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert checkpoints.load(first).step == 1


def test_latest_passes_over_unfinished_writes(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "nowhere") is None
    kept = checkpoints.save(
        tmp_path, 999_999_999, write_content
    )  # longer than the padding: numbers, not letters
    checkpoints.save(tmp_path, 20, write_content)
    (tmp_path / ".writing-abc").mkdir()
    (tmp_path / "step-1999999999").mkdir()  # no manifest
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoints.latest(tmp_path) == kept


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(0, 50), min_size=1, max_size=8), keep=st.integers(0, 4))
def test_the_newest_are_kept(steps: list[int], keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        expected: set[int] = set()
        for step in steps:
            checkpoints.save(root, step, lambda path: (path / "step").write_bytes(b"s"), keep=keep)
            expected.add(step)
            newest = set(sorted(expected)[-keep:]) if keep else expected
            expected = newest | {step}  # the one just written stays, even where it is the oldest
        found = {checkpoints.load(path).step for path in root.glob("step-*")}
        assert found == expected


def test_a_step_written_again_is_replaced(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 3, write_content)
    final = checkpoints.save(tmp_path, 3, lambda folder: (folder / "other").write_bytes(b"new"))
    checkpoints.load(final)
    assert sorted(path.name for path in final.iterdir()) == ["manifest.json", "other"]


def test_abandoned_writes_are_swept_and_fresh_ones_left_alone(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".writing-old", tmp_path / ".writing-fresh"
    old.mkdir()
    fresh.mkdir()
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    checkpoints.save(tmp_path, 1, write_content)
    assert not old.exists()
    assert fresh.exists()
