"""A full disk or a lack of handles ends a conversion in one line; no episode is set aside, nothing is written."""

from __future__ import annotations

import errno
import os
import resource

import av
import pytest
from episode_files import write_droid, write_lerobot_v2, write_rlds
from refusals import refused

from roboalign_ray.episodes import video
from roboalign_ray.episodes.sources import lerobot_tables
from roboalign_ray.foundation.failures import HostError
from roboalign_ray.foundation.storage import parquet
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert

DATASETS = {"lerobot": write_lerobot_v2, "rlds": write_rlds, "droid": write_droid}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_full_temporary_folder_ends_the_conversion(kind, tmp_path, capfd, monkeypatch):
    DATASETS[kind](tmp_path / "set", [4, 4])
    written = []

    def full(path, *rest):
        written.append(path)
        path.write_bytes(b"half a video")
        av.error.err_check(-errno.ENOSPC)

    monkeypatch.setattr(video, "_write_mp4", full)
    words = ["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "store"), "-q"]
    assert "No space left on device; free space" in refused(words, tmp_path, capfd)
    assert len(written) == 1
    assert not written[0].exists()


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM], ids=errno.errorcode.get
)
def test_a_table_that_cannot_be_opened_for_reasons_of_the_host_ends_the_conversion(
    code, tmp_path, capfd, monkeypatch
):
    write_lerobot_v2(tmp_path / "set", [4, 4])

    def broken(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(parquet, "open_parquet", broken)
    lerobot_tables._read_data_file.cache_clear()
    words = ["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "store"), "-q"]
    assert os.strerror(code) in refused(words, tmp_path, capfd)


def test_no_open_file_left_ends_the_conversion(tmp_path):
    """With a real limit: the process may open no more file than it already has."""
    write_lerobot_v2(tmp_path / "set", [4, 4])
    convert(tmp_path / "set", tmp_path / "first", ConvertOptions())  # what is imported late is imported now
    lerobot_tables._read_data_file.cache_clear()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(HostError, match="Too many open files"):
            convert(tmp_path / "set", tmp_path / "store", ConvertOptions())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "set"]


@pytest.mark.parametrize("broken", [False, True])
def test_names_that_read_as_markup_are_printed_as_they_are(broken, tmp_path, capfd):
    """A split "[" and an episode "red]" make the id "droid/[/red]", which closes a colour that was never opened."""
    folder = tmp_path / "[bold]set"
    write_droid(folder, [4, 4])
    (folder / "annotation/[").mkdir()
    (folder / "annotation/train/0.json").rename(folder / "annotation/[/red].json")
    if broken:
        (folder / "videos/train/0/0.mp4").write_bytes(b"no video")
    store = tmp_path / "store [/blue]"
    assert run(["episodes", "convert", str(folder), str(store)]) == 0
    assert ("droid/[/red]" in capfd.readouterr().out) is broken
    assert run(["episodes", "inspect", str(store)]) == 0
    assert "[/blue]" in capfd.readouterr().out.replace("\n", "")
