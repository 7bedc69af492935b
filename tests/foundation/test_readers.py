"""Readers of our own files: what is whole comes back as it was, anything else is one line."""

from __future__ import annotations

import errno
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corruption import measured
from pydantic import BaseModel

from roboalign_ray.foundation.failures import HostError, UserError
from roboalign_ray.foundation.storage.parquet import read_columns
from roboalign_ray.foundation.storage.readers import (
    parse_json,
    pick,
    read_arrays,
    read_json,
    read_lines,
    read_object,
    validated,
)

MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 5_000, "digits"),
        (b"\xff\xfe\x00", "codec"),
        (b"{'a': 1}", "Expecting property name"),
        (b"", "Expecting value"),
        (rb'{"a": "\ud800"}', "holds half a character"),
        (rb'["\uDC00 and \ud83d\ude00"]', "holds half a character"),
        (b'"\xed\xa0\x80"', "codec"),
    ],
)
def test_text_that_is_no_json_is_one_line(text: bytes, told: str) -> None:
    with pytest.raises(UserError, match=r"a\.json: cannot be read as manifest") as caught:
        parse_json(text, where="a.json", what="manifest")
    assert told in caught.value.line()
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_whole_characters_are_read(encoding: str) -> None:
    text = json.dumps(["\N{GRINNING FACE}", "\\ud800"])  # two halves, and a backslash before letters
    assert parse_json(text.encode(encoding), where="a.json") == ["\N{GRINNING FACE}", "\\ud800"]


def test_a_file_over_its_bound_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(200 * MEGABYTE)  # sparse: nothing on the disk
    cost = measured(lambda: read_json(path, "manifest", most_bytes=MEGABYTE))
    assert isinstance(cost.error, UserError)
    assert "larger than" in cost.error.line()
    assert cost.megabytes < 50


def test_objects_have_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_object(path, "manifest", keys=("a",)) == {"a": 1}
    with pytest.raises(UserError, match=r"\(no 'b'\); write it again"):
        read_object(path, "manifest", keys=("a", "b"), remedy="write it again")
    path.write_text("[1]")
    with pytest.raises(UserError, match="holds no object"):
        read_object(path, "manifest")
    with pytest.raises(UserError, match="no manifest here"):
        read_object(tmp_path, "manifest")


def test_a_denied_file_is_the_hosts_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")

    def denied(*_args: object, **_more: object) -> None:
        raise PermissionError(errno.EACCES, "denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(HostError, match="Permission denied"):
        read_object(path, "manifest")


class _Card(BaseModel):
    sizes: list[int]


def test_models_name_the_first_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"sizes": [1, "two"]}')
    with pytest.raises(UserError, match=r"a\.json: cannot be read as card \(sizes\.1: "):
        validated(read_json(path, "card"), _Card, "card", where=str(path))


@pytest.mark.parametrize(
    ("kind", "value", "good"),
    [(float, 1, True), (float, True, False), (int, True, False), (bool, True, True), (int, 1.0, False)],
)
def test_a_picked_value_has_its_type(kind: type, value: object, good: bool) -> None:
    if good:
        assert pick({"x": value}, "x", kind, where="a", what="card") == value
    else:
        with pytest.raises(UserError, match="'x' is"):
            pick({"x": value}, "x", kind, where="a", what="card")


def test_only_the_last_line_may_be_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": ')
    assert [line["a"] for line in read_lines(path, "journal line", keys=("a",))] == [1, 2]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl:2: cannot be read as journal line"):
        list(read_lines(path, "journal line"))
    path.write_text('{"a": 1}\n{"b": 1}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl:2: is no journal line"):
        list(read_lines(path, "journal line", keys=("a",)))


def _npz(path: Path, member: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
    return path


def _npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.int32).reshape(2, 3),
        "b": np.array(2.5),
        "c": np.zeros((0, 4), bool),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz", "group")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_archive_of_objects_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", _npy(np.array([{"a": 1}], dtype=object), pickled=True))
    with pytest.raises(UserError, match="holds object, not numbers"):
        read_arrays(path, "group")


def test_an_archive_that_unpacks_to_too_much_takes_no_memory(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", _npy(np.zeros(200 * MEGABYTE, np.uint8)))
    assert path.stat().st_size < MEGABYTE
    cost = measured(lambda: read_arrays(path, "group", most_bytes=20 * MEGABYTE))
    assert isinstance(cost.error, UserError)
    assert "unpacks to more" in cost.error.line()
    assert cost.megabytes < 20


def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path: Path) -> None:
    whole = _npy(np.zeros(1000, np.uint8))
    claimed = whole.replace(b"(1000,)", b"(2" + b"0" * 9 + b",)").replace(b" " * 5 + b"\n", b"\n", 1)
    cost = measured(lambda: read_arrays(_npz(tmp_path / "a.npz", claimed), "group"))
    assert isinstance(cost.error, UserError)
    assert cost.megabytes < 20


def _everything(_column: str) -> bool:
    return True


def test_parquet_columns_are_checked_by_type(tmp_path: Path) -> None:
    schema = pa.schema([("name", pa.string()), ("video", pa.large_binary()), ("new", pa.int32())])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"name": ["x"], "video": pa.array([b"v"], pa.large_binary())}), path)
    assert len(read_columns(path, _everything, schema=schema, optional=("new",))) == 1
    with pytest.raises(UserError, match="column 'new' is missing"):
        read_columns(path, _everything, schema=schema)
    # A path where bytes should be would be opened by whatever decodes the bytes.
    pq.write_table(pa.table({"name": ["x"], "video": ["/etc/passwd"]}), path)
    with pytest.raises(UserError, match="column 'video' is string, not large_binary"):
        read_columns(path, _everything, schema=schema, optional=("new",))


def test_a_row_group_over_its_bound_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"video": pa.array([bytes(100 * MEGABYTE)], pa.large_binary())})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < MEGABYTE
    cost = measured(lambda: read_columns(path, _everything, most_bytes=10 * MEGABYTE))
    assert isinstance(cost.error, UserError)
    assert "unpack to more than 10 MB" in cost.error.line()
    assert cost.megabytes < 20
    assert len(read_columns(path, _everything)) == 1


def test_json_with_a_mark_of_byte_order_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json", "card") == {"a": 1}
