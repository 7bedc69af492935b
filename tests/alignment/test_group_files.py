"""Scored groups survive a file bit for bit."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from made_groups import make_group

from roboalign_ray.alignment.records.group_files import load_group, save_group
from roboalign_ray.foundation.failures import UserError


@pytest.mark.parametrize("seed", range(3))
def test_a_group_comes_back_as_it_was(tmp_path, seed):
    group = make_group(seed)
    save_group(tmp_path / "group.npz", group)
    again = load_group(tmp_path / "group.npz")
    for name in ("prompt_id", "instruction", "seeds", "start", "versions", "horizon"):
        assert getattr(again.rollout, name) == getattr(group.rollout, name)
    cost, expected = again.rollout.cost, group.rollout.cost
    assert (cost.peak_sequence, cost.cache_bytes) == (expected.peak_sequence, expected.cache_bytes)
    np.testing.assert_array_equal(cost.seconds_per_frame, expected.seconds_per_frame)
    segments = again.rollout.payload.segments, group.rollout.payload.segments
    for ours, theirs in zip(*segments, strict=True):
        assert (ours.version, ours.exact) == (theirs.version, theirs.exact)
        for name in ("context", "given", "actions", "tokens", "logprobs"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    first, failed, broken = again.scores
    assert first == group.scores[0]
    np.testing.assert_array_equal(first.per_frame, group.scores[0].per_frame)
    assert failed == group.scores[1]
    assert np.isnan(broken.total)
    assert broken.per_frame is None
    assert again.record().as_json()["versions"] == group.record().as_json()["versions"]


def test_a_file_that_is_missing_or_cut_is_told(tmp_path):
    path = tmp_path / "group.npz"
    with pytest.raises(UserError, match="no scored group here"):
        load_group(path)
    save_group(path, make_group(0))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"group\.npz"):
        load_group(path)


def archive_of(path, header: bytes, arrays: dict, compress: bool = False) -> None:
    text = np.frombuffer(header, np.uint8)
    (np.savez_compressed if compress else np.savez)(path, header=text, **arrays)


def bomb(path) -> None:
    archive_of(path, b"{}", {"seconds_per_frame": np.zeros(1 << 24)}, compress=True)


def claims_a_lot(path) -> None:
    head = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 50},)}}".encode()
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", head.ljust(127) + b"\n")


def objects(path) -> None:
    np.savez(path, header=np.array([print], object))


def encrypted(path) -> None:
    save_group(path, make_group(0))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        bomb,
        claims_a_lot,
        objects,
        encrypted,
        lambda path: archive_of(path, b"[" * 20000, {}),
        lambda path: archive_of(path, b"[]", {}),
        lambda path: archive_of(path, b'{"segments": 3}', {}),
        lambda path: archive_of(path, b'{"segments": [3]}', {}),
        lambda path: archive_of(path, b"\xff", {}),
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    ],
)
def test_an_archive_of_others_is_one_line(tmp_path, write):
    write(tmp_path / "group.npz")
    with pytest.raises(UserError, match=r"(is not a|cannot be read as) scored group") as told:
        load_group(tmp_path / "group.npz")
    assert "\n" not in told.value.line()
