"""Which checkpoint a run goes on from, of those in its folder and their copies elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.align_checkpoints import KEPT, RunCheckpoints
from roboalign_ray.foundation import checkpoints
from roboalign_ray.foundation.checkpoints import CheckpointError


def write(step: int, text: str = "weights"):
    def into(root: Path) -> Path:
        return checkpoints.save(
            root, step, lambda folder: (folder / "model").write_text(f"{text} {step}") and None, keep=KEPT
        )

    return into


def text_of(kept: RunCheckpoints) -> str:
    found = kept.load()
    assert found is not None
    return (found.folder / "model").read_text()


def kept_at(folder: Path, name: str = "checkpoints") -> RunCheckpoints:
    return RunCheckpoints(folder / name, f"file://{folder / 'there'}")


def test_a_lost_folder_is_made_good_from_the_copies(tmp_path):
    kept = kept_at(tmp_path)
    assert not kept.begun()
    for step in (1, 2, 3):
        kept.save(write(step))
    shutil.rmtree(tmp_path / "checkpoints")
    assert kept.begun()
    assert kept.load() is None
    kept.fetch()
    assert text_of(kept) == "weights 3"
    assert sorted(checkpoints.complete(tmp_path / "checkpoints")) == [3]


def test_the_newer_one_wins_and_what_is_here_wins_a_tie(tmp_path):
    kept = kept_at(tmp_path)
    kept.save(write(1))
    kept_at(tmp_path, "elsewhere").save(write(2, "elsewhere"))
    kept.fetch()
    assert text_of(kept) == "elsewhere 2"
    checkpoints.save(
        tmp_path / "checkpoints", 2, lambda folder: (folder / "model").write_text("here") and None
    )
    kept.fetch()
    assert text_of(kept) == "here"


def test_without_copies_nothing_is_fetched(tmp_path):
    kept = RunCheckpoints(tmp_path / "checkpoints")
    assert not kept.begun()
    kept.fetch()
    assert kept.newest() is None
    kept.save(write(5))
    assert kept.begun()
    assert text_of(kept) == "weights 5"


def test_a_copy_that_cannot_be_written_is_told_and_the_one_here_stands(tmp_path):
    kept = kept_at(tmp_path)
    (tmp_path / "there").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="cannot be read or written"):
        kept.save(write(4))
    assert text_of(kept) == "weights 4"
