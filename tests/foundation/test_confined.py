"""Names that come from files stay inside their folder: in manifests here and elsewhere, and in packed folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from roboalign_ray.foundation.failures import ReportedError
from roboalign_ray.foundation.storage import checkpoints, files
from roboalign_ray.foundation.storage.checkpoint_mirror import CheckpointMirror
from roboalign_ray.foundation.storage.checkpoints import CheckpointError
from roboalign_ray.foundation.storage.confined import UnsafeName, check_names

OUTSIDE = [
    "/etc/passwd",
    "../outside",
    "a/../../outside",
    "a/..",
    "..",
    ".",
    "",
    "a//b",
    "a/./b",
    "/",
    "a/",
    "C:\\Windows\\x",
    "C:x",
    "\\\\server\\share",
    "a\\..\\..\\b",
    "a\x00b",
    "a\nb",
    "\x1b[2Jb",
    "a" * 256,
    "/".join("abcdefghijklmnopqrst"),
    "a./b",
    "a /b",
    "\ud800",
]
COLLIDING = [
    ["model", "MODEL"],
    ["é", "e\u0301"],
    ["a", "a/b"],
    ["a/b", "A"],
    ["x/A/c", "x/a"],
    ["manifest.json"],
    ["Manifest.JSON"],
    ["manifest.json/a"],
]


@pytest.mark.parametrize("name", [*OUTSIDE, 3, None, b"a"])
def test_a_name_that_leads_out_is_refused(name) -> None:
    with pytest.raises(UnsafeName) as told:
        check_names(["fine", name], "a manifest")
    assert "a manifest" in told.value.line()
    assert told.value.line().isprintable()


@pytest.mark.parametrize("names", COLLIDING[:5])
def test_names_of_one_file_are_refused(names: list[str]) -> None:
    with pytest.raises(UnsafeName):
        check_names(names, "a manifest")


def test_ordinary_names_pass() -> None:
    names = ["model/model.safetensors", "état/000001.npz", "a/b", "a/c", ".hidden", "a-b_c (1).bin", "..a"]
    assert check_names(names, "here") == names


@settings(max_examples=300, deadline=None)
@given(name=st.text(alphabet="ab./\\:\x00 ~", max_size=12))
def test_a_name_that_passes_lies_below_any_folder(name: str) -> None:
    try:
        check_names([name], "here")
    except UnsafeName:
        return
    joined = os.path.normpath(os.path.join("/above/folder", name))
    assert joined == f"/above/folder/{name}"


# --- checkpoints ---------------------------------------------------------------------------------------------------


def entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest(entries: dict[str, Any], step: Any = 4, **changes: Any) -> bytes:
    """A manifest made by hand, with the digest that belongs to it."""
    body = {"format": 1, "step": step, "metadata": {}, "files": entries, **changes}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "digest": digest}).encode()


@pytest.fixture
def there(tmp_path: Path) -> CheckpointMirror:
    """A place of copies that an attacker writes to."""
    (tmp_path / "there").mkdir()
    return CheckpointMirror(LocalFileSystem(), str(tmp_path / "there"))


def offer(there: Path, text: bytes, contents: dict[str, bytes], step: int = 4) -> None:
    digest = json.loads(text)["digest"][:16]
    for name, content in contents.items():
        path = there / f"step-{step:08d}-{digest}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (there / f"step-{step:08d}.json").write_bytes(text)


def refused_copy(mirror: CheckpointMirror, tmp_path: Path, match: str) -> None:
    """The copy must be refused in one line, and nothing may be written."""
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=match) as told:
        mirror.pull(4, tmp_path / "out" / "checkpoints")
    assert told.value.line().isprintable()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name != "\ud800"])
def test_a_copys_manifest_cannot_name_files_outside(there, tmp_path: Path, name: str) -> None:
    text = manifest({"model": entry(b"w"), name: entry(b"owned")})
    offer(tmp_path / "there", text, {"model": b"w"})
    refused_copy(there, tmp_path, "outside of its folder")


def test_an_absolute_name_writes_nothing_there(there, tmp_path: Path) -> None:
    target = tmp_path / "home" / ".bashrc"
    target.parent.mkdir()
    text = manifest({str(target): entry(b"owned")})
    offer(tmp_path / "there", text, {})
    # Where a file system joins paths as texts, the content lies under the folder's own name.
    inside = tmp_path / "there" / f"step-00000004-{json.loads(text)['digest'][:16]}" / str(target)[1:]
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"owned")
    refused_copy(there, tmp_path, "outside of its folder")
    assert not target.exists()


@pytest.mark.parametrize("names", COLLIDING)
def test_a_manifest_cannot_name_one_file_twice(there, tmp_path: Path, names: list[str]) -> None:
    offer(tmp_path / "there", manifest(dict.fromkeys(names, entry(b"w"))), {})
    refused_copy(there, tmp_path, "twice")


def test_a_key_that_stands_twice_is_refused(there, tmp_path: Path) -> None:
    text = manifest({"model": entry(b"w")})
    offer(tmp_path / "there", text, {"model": b"w"})
    pointer = tmp_path / "there" / "step-00000004.json"
    pointer.write_bytes(text.replace(b'"model":', b'"model": {"size": 0, "sha256": ""}, "model":'))
    refused_copy(there, tmp_path, "is not a checkpoint's manifest")


@pytest.mark.parametrize(
    "changed",
    [
        {"files": []},
        {"files": {"model": 3}},
        {"files": {"model": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"model": {"size": True, "sha256": "0" * 64}}},
        {"files": {"model": {"size": 1.0, "sha256": "0" * 64}}},
        {"files": {"model": {"size": 1, "sha256": "../" * 20 + "abcd"}}},
        {"files": {"model": {"size": 1, "sha256": "0" * 64, "more": 1}}},
        {"metadata": []},
        {"step": "../../x"},
        {"step": -1},
        {"step": True},
        {"step": 10**30},
        {"step": None},
        {"format": 2},
    ],
)
def test_values_of_other_kinds_are_refused(there, tmp_path: Path, changed: dict[str, Any]) -> None:
    offer(tmp_path / "there", manifest({"model": entry(b"w")}, **changed), {"model": b"w"})
    refused_copy(there, tmp_path, "manifest|format")


def test_a_copy_under_another_steps_name_is_refused(there, tmp_path: Path) -> None:
    text = manifest({"model": entry(b"old")}, step=3)
    offer(tmp_path / "there", text, {"model": b"old"}, step=4)
    refused_copy(there, tmp_path, "renamed or swapped")


def test_a_file_larger_than_told_is_given_up_early(there, tmp_path: Path) -> None:
    text = manifest({"model": entry(b"w")})
    offer(tmp_path / "there", text, {"model": b"w" * (8 << 20)})
    refused_copy(there, tmp_path, "is larger than the 1 bytes")


def test_sizes_beyond_the_disk_are_refused_before_a_byte_is_fetched(there, tmp_path: Path) -> None:
    offer(tmp_path / "there", manifest({"model": {**entry(b"w"), "size": 1 << 60}}), {"model": b"w"})
    with pytest.raises(ReportedError, match="on its disk"):
        there.pull(4, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_huge_manifest_is_not_read(there, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LARGEST_MANIFEST", 1000)
    offer(tmp_path / "there", manifest({f"file{n}": entry(b"w") for n in range(20)}), {})
    refused_copy(there, tmp_path, "is larger than the 1000 bytes")
    here = checkpoints.save(tmp_path / "here", 1, lambda folder: (folder / "a").write_bytes(b"") and None)
    (here / "manifest.json").write_bytes(b" " * 1001)
    with pytest.raises(CheckpointError, match="is too large"):
        checkpoints.load(here)


@pytest.mark.parametrize(
    "name",
    [
        "step-00000007.json\n",
        "step-٠٠٠٠٠٠٠٧.json",
        f"step-{'9' * 200}.json",
        "step-7.json",
        "step-0000000x.json",
    ],
)
def test_other_names_among_copies_are_no_steps(there, tmp_path: Path, name: str) -> None:
    (tmp_path / "there" / name).write_bytes(b"{}")
    assert there.steps() == []


# --- a checkpoint's own folder -------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(b"w" * 9)

    return checkpoints.save(tmp_path / "run", 4, write)


def link_file(made: Path, aside: Path) -> None:
    shutil.move(made / "model" / "weights", aside)
    (made / "model" / "weights").symlink_to(aside)


def link_folder(made: Path, aside: Path) -> None:
    shutil.move(made / "model", aside)
    (made / "model").symlink_to(aside)


def link_manifest(made: Path, aside: Path) -> None:
    shutil.move(made / "manifest.json", aside)
    (made / "manifest.json").symlink_to(aside)


def link_all(made: Path, aside: Path) -> None:
    shutil.move(made, aside)
    made.symlink_to(aside)


def pipe(made: Path, aside: Path) -> None:
    (made / "model" / "weights").unlink()
    os.mkfifo(made / "model" / "weights")


def extra_link(made: Path, aside: Path) -> None:
    (made / "more").symlink_to("/etc")


@pytest.mark.parametrize("change", [link_file, link_folder, link_manifest, link_all, pipe, extra_link])
def test_links_and_pipes_are_not_followed(made: Path, tmp_path: Path, change) -> None:
    change(made, tmp_path / "aside")
    with pytest.raises(CheckpointError, match=r"symbolic link|no plain file|holds no manifest"):
        checkpoints.load(made)


def test_a_renamed_checkpoint_is_refused(made: Path) -> None:
    renamed = made.rename(made.with_name("step-00000009"))
    with pytest.raises(CheckpointError, match="step 4: it was renamed or swapped"):
        checkpoints.load(renamed)
    assert checkpoints.load(renamed.rename(made)).step == 4


# --- packed folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_packed_folder_cannot_leave_its_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeName):
        files.unpack_folder({"fine": b"1", name: b"owned"}, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_link_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    assert files.packed_folder(tmp_path / "folder") == {"a": b"1"}
    (tmp_path / "folder" / "secret").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeName, match="symbolic link"):
        files.packed_folder(tmp_path / "folder")
