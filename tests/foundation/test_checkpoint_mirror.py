"""Copies of checkpoints: whole or not there where folders cannot be renamed, and checked when they return."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem

from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.checkpoint_mirror import CheckpointMirror
from roboalign_ray.foundation.storage.checkpoints import CheckpointError

WRITES = {"create_dir", "open_output_stream", "move", "delete_file", "delete_dir"}


def made(root: Path, step: int, text: str = "weights") -> Path:
    def write(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "rng.pt").write_bytes(b"\x00" * step)
        (folder / "model.safetensors").write_text(f"{text} {step}")

    return checkpoints.save(root, step, write, metadata={"version": step})


def text_of(folder: Path) -> str:
    checkpoints.load(folder)
    return (folder / "model.safetensors").read_text()


class Failing:
    """A file system of which only the first `writes` calls that change something are carried out."""

    def __init__(self, filesystem: FileSystem, writes: int) -> None:
        self.filesystem, self.left = filesystem, writes

    def __getattr__(self, name: str) -> Any:
        if name in WRITES:
            if not self.left:
                raise OSError("the writer died")
            self.left -= 1
        return getattr(self.filesystem, name)


@pytest.fixture
def there(tmp_path) -> FileSystem:
    (tmp_path / "there").mkdir()
    return SubTreeFileSystem(str(tmp_path / "there"), LocalFileSystem())


def test_a_copy_comes_back_as_it_was_and_the_newest_are_kept(there, tmp_path):
    mirror = CheckpointMirror(there, "runs/first")
    assert mirror.steps() == []
    for step in (1, 2, 30):
        mirror.push(made(tmp_path / "here", step), keep=2)
    assert mirror.steps() == [2, 30]
    assert len(list((tmp_path / "there/runs/first").iterdir())) == 4  # two manifests, and the files of each
    back = mirror.pull(30, tmp_path / "elsewhere")
    assert back == tmp_path / "elsewhere" / "step-00000030" == checkpoints.latest(tmp_path / "elsewhere")
    assert checkpoints.load(back).metadata == {"version": 30}
    assert text_of(back) == "weights 30"
    assert text_of(mirror.pull(30, tmp_path / "here")) == "weights 30"  # over what is there


def test_a_step_written_again_replaces_the_first(there, tmp_path):
    mirror = CheckpointMirror(there, "run")
    mirror.push(made(tmp_path / "here", 4, "old"))
    mirror.push(made(tmp_path / "here", 4, "new"))
    mirror.push(made(tmp_path / "here", 4, "new"))  # as it is
    assert text_of(mirror.pull(4, tmp_path / "back")) == "new 4"
    assert len(list((tmp_path / "there/run").iterdir())) == 2


@settings(max_examples=60, deadline=None)
@given(writes=st.integers(0, 30), same=st.booleans())
def test_a_writer_that_dies_leaves_the_last_copy_whole(writes: int, same: bool):
    with tempfile.TemporaryDirectory() as folder:
        here, back = Path(folder) / "here", Path(folder) / "back"
        (Path(folder) / "there").mkdir()
        filesystem = SubTreeFileSystem(str(Path(folder) / "there"), LocalFileSystem())
        step = 5 if same else 6
        CheckpointMirror(filesystem, "run").push(made(here, 5, "old"))
        second = made(here, step, "new")
        dying, died = CheckpointMirror(Failing(filesystem, writes), "run"), False
        try:
            dying.push(second, keep=1)
        except CheckpointError:
            died = True
        whole = CheckpointMirror(filesystem, "run")
        newest = whole.steps()[-1]
        found = text_of(whole.pull(newest, back))
        assert found == f"new {step}" or (died and found == "old 5")
        whole.push(second, keep=1)  # the next writer clears away what was left
        assert whole.steps() == [step]
        assert text_of(whole.pull(step, back)) == f"new {step}"
        assert len([p for p in (Path(folder) / "there/run").iterdir() if p.is_dir()]) == 1


@pytest.mark.parametrize("victim", ["model.safetensors", "state/rng.pt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_copy_is_refused_and_nothing_takes_its_place(there, tmp_path, victim, damage):
    mirror = CheckpointMirror(there, "run")
    mirror.push(made(tmp_path / "here", 8))
    [path] = (tmp_path / "there").rglob(victim.rpartition("/")[2])
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flip" else content[:-1])
    with pytest.raises(CheckpointError):
        mirror.pull(8, tmp_path / "back")
    assert checkpoints.latest(tmp_path / "back") is None
    assert list((tmp_path / "back").iterdir()) == []


def test_a_torn_manifest_is_refused(there, tmp_path):
    mirror = CheckpointMirror(there, "run")
    mirror.push(made(tmp_path / "here", 8))
    [pointer] = (tmp_path / "there/run").glob("*.json")
    pointer.write_bytes(pointer.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="manifest"):
        mirror.pull(8, tmp_path / "back")


def test_a_folder_by_its_uri(tmp_path):
    mirror = CheckpointMirror.at(f"file://{tmp_path / 'there'}")
    mirror.push(made(tmp_path / "here", 3))
    assert CheckpointMirror.at(f"file://{tmp_path / 'there'}").steps() == [3]
    shutil.rmtree(tmp_path / "here")
    assert text_of(mirror.pull(3, tmp_path / "here")) == "weights 3"


@pytest.mark.parametrize("uri", ["nowhere://bucket/run", "s3:/bucket", "run"])
def test_an_address_that_leads_nowhere_is_told_in_one_line(uri):
    with pytest.raises(CheckpointError) as found:
        CheckpointMirror.at(uri)
    assert found.value.where == uri
    assert "\n" not in found.value.line()


@pytest.fixture
def s3(monkeypatch):
    """The address of a bucket on a server that speaks S3's protocol."""
    server = pytest.importorskip("moto.server", reason="no S3 server here: pip install 'moto[server]'")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    _, port = running.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="runs")
    yield f"s3://runs/first?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    running.stop()


def test_a_bucket_keeps_whole_checkpoints(s3, tmp_path):
    for step in (1, 2, 3):
        CheckpointMirror.at(s3).push(made(tmp_path / "here", step), keep=2)
    mirror = CheckpointMirror.at(s3)
    assert mirror.steps() == [2, 3]
    mirror.push(made(tmp_path / "here", 3, "again"), keep=2)
    assert text_of(mirror.pull(3, tmp_path / "back")) == "again 3"
    assert checkpoints.load(tmp_path / "back" / "step-00000003").metadata == {"version": 3}
