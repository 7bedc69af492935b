"""Training state as data: what is written comes back, and what is not data is refused without running anything."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from roboalign_ray.foundation.failures import HostError
from roboalign_ray.foundation.storage.state_files import StateError, read_state, write_state

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.sampled_from(
    [
        torch.arange(6).reshape(2, 3),
        torch.ones(2, dtype=torch.bfloat16) / 3,
        torch.tensor(True),
        torch.zeros(0, 4),
        torch.eye(3)[:, 1],
        torch.get_rng_state(),
    ]
)
TREES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_a_tree_comes_back_as_it_was(tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder) / "state", tree)
        assert same(read_state(Path(folder) / "state"), tree)


def test_shared_views_arrays_and_infinities_come_back(tmp_path: Path) -> None:
    buffer = torch.arange(10.0)
    array = np.arange(3, dtype=np.int16)
    tree = {"a": buffer[:4], "b": buffer[2:], "whole": buffer, "again": buffer, "array": array}
    write_state(tmp_path / "state", {**tree, "scalar": np.float64(2.5), "inf": float("-inf")})
    back = read_state(tmp_path / "state")
    for name in ("a", "b", "whole", "again"):
        torch.testing.assert_close(back[name], tree[name])
    np.testing.assert_array_equal(back["array"], array)
    assert back["array"].dtype == np.int16
    assert (back["scalar"], back["inf"]) == (2.5, float("-inf"))


@pytest.mark.parametrize("value", [object(), {1.5: 2}, {True: 1}, {"a": [print]}, 1j, b"bytes"])
def test_what_is_not_data_is_not_written(tmp_path: Path, value) -> None:
    with pytest.raises(TypeError):
        write_state(tmp_path / "state", value)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("code", [28, 122, 30, 13])
def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: x (os error {code})")  # as it says it

    monkeypatch.setattr("roboalign_ray.foundation.storage.state_files.save_file", full)
    with pytest.raises(HostError, match=os.strerror(code)) as told:
        write_state(tmp_path / "state", {})
    assert str(tmp_path / "state") in told.value.line()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save(Touch(tmp_path / "ran"), tmp_path / "state")
    with pytest.raises(StateError, match="is not training state"):
        read_state(tmp_path / "state")
    assert not (tmp_path / "ran").exists()


def file_of(tree, tensors: dict | None = None, **more: str) -> bytes:
    """A safetensors file made by hand, without tensors' bytes."""
    about = {"roboalign_ray.state": "1", "tree": tree, **more}
    header = json.dumps({"__metadata__": about, **(tensors or {})}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        struct.pack("<Q", 2**62) + b"{}",
        file_of("{"),
        file_of('{"tensor": "000000"}'),
        file_of('{"call": "os.system"}'),
        file_of('{"dict": [[[1], 2]]}'),
        file_of('{"dict": [[1]]}'),
        file_of("[1]"),
        file_of('{"list": 3}'),
        file_of("{}"),
        file_of("null", **{"roboalign_ray.state": "2"}),
        file_of('{"list":[' * 5000 + "]}" * 5000),
        file_of("null", {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    ],
)
def test_files_of_others_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(StateError) as told:
        read_state(tmp_path / "state")
    assert str(tmp_path / "state") in told.value.line()
    assert "\n" not in told.value.line()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_read(data) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        write_state(path, {"step": 3, "state": {0: {"exp_avg": torch.ones(4), "betas": (0.9, 0.98)}}})
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with contextlib.suppress(StateError):
            read_state(path)
