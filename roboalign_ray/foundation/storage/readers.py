"""Readers for files that may be damaged or untrusted: sizes are bounded, forms are checked, errors are one line.

JSON, JSON lines and archives of arrays are read through this module, Parquet through `parquet`. A reader either
returns what the caller asked for or raises `UserError`. It never runs code from a file (no pickles) and never uses
more memory than its stated bound.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host

MOST_JSON_BYTES = 64 << 20
MOST_ARRAY_BYTES = 4 << 30

_HALF_CHARACTER = ("\\ud", "\\uD")  # the beginning of an escaped surrogate
_NUMBER_KINDS = frozenset("biuf")
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error)

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


def parse_json(data: bytes | str, *, where: str, what: str = "JSON") -> Any:
    """The value of a JSON text.

    Args:
        data: the text, UTF-8.
        where: source of the text for the error, a path or "file:line".
        what: what the text should be, without an article ("a checkpoint's manifest" becomes "checkpoint manifest").

    Raises:
        UserError: the text is not UTF-8 or not JSON, is nested too deeply, has a number with too many digits, or has a
            string that is not valid Unicode.
    """
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        value = json.loads(text)
        if any(escape in text for escape in _HALF_CHARACTER):
            json.dumps(value, ensure_ascii=False).encode()  # fails on a lone surrogate
        return value
    except UnicodeEncodeError:
        raise UserError(f"cannot be read as {what} (a text holds half a character)", where=where) from None
    except RecursionError:
        raise UserError(f"cannot be read as {what} (nested too deeply)", where=where) from None
    except ValueError as error:
        raise UserError(f"cannot be read as {what} ({first_line(error)})", where=where) from None


def read_json(path: Path, what: str, *, remedy: str = "", most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        what: what the file should be, for the error.
        remedy: what to do about a file that is missing or damaged.
        most_bytes: a larger file is refused without being parsed.

    Raises:
        UserError: the file is missing, unreadable, too large, or not JSON.
    """
    try:
        return parse_json(read_bytes(path, what, most_bytes=most_bytes), where=str(path), what=what)
    except UserError as error:
        raise UserError(error.what, where=error.where, remedy=error.remedy or remedy) from None


def read_object(path: Path, what: str, *, keys: Collection[str] = (), remedy: str = "") -> dict[str, Any]:
    """The object of a JSON file; `keys` must be among its keys.

    Raises:
        UserError: as `read_json`; or the value is not an object, or a key is missing.
    """
    value = read_json(path, what, remedy=remedy)
    if not isinstance(value, dict):
        raise UserError(f"cannot be read as {what} (it holds no object)", where=str(path), remedy=remedy)
    for key in keys:
        if key not in value:
            raise UserError(f"cannot be read as {what} (no '{key}')", where=str(path), remedy=remedy)
    return value


def validated(value: Any, model: type[Model], what: str, *, where: str, remedy: str = "") -> Model:
    """A parsed value as a pydantic model.

    Raises:
        UserError: a field is missing or wrong; the message names the first one.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(
            f"cannot be read as {what} ({first_fault(error)})", where=where, remedy=remedy
        ) from None


def first_fault(error: ValidationError) -> str:
    """The first error that pydantic found, with its field."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def read_bytes(path: Path, what: str, *, most_bytes: int) -> bytes:
    """All bytes of a regular file of at most `most_bytes`.

    Raises:
        UserError: the file is missing, not a regular file, too large, or unreadable.
    """
    try:
        if not path.is_file():
            raise UserError(f"no {what} here", where=str(path))
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise_if_host(error, where=str(path))
        raise UserError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    if len(data) > most_bytes:
        raise UserError(f"is larger than the {most_bytes} bytes that a {what} may have", where=str(path))
    return data


def read_lines(path: Path, what: str, *, keys: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object per line. A truncated last line is left out.

    A run that is killed while it writes leaves such a line; any other broken line is an error.

    Args:
        path: the file.
        what: what a line should be, for the error.
        keys: must be among the keys of every object.

    Raises:
        UserError: the file is unreadable, or a line is not such an object; the message names the line number.
    """
    lines = read_bytes(path, what, most_bytes=MOST_ARRAY_BYTES).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse_json(line, where=where, what=what)
        except UserError:
            if number == len(lines):
                return
            raise
        if not isinstance(value, dict) or any(key not in value for key in keys):
            raise UserError(f"is no {what}", where=where)
        yield value


def read_arrays(path: Path, what: str, *, most_bytes: int = MOST_ARRAY_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive (npz) by name: numbers and Booleans, no objects.

    Args:
        path: the file.
        what: what the file should be, for the error.
        most_bytes: limit on the unpacked size of all arrays together.

    Raises:
        UserError: the file is missing, damaged, too large unpacked, or holds anything other than arrays of numbers.
    """
    try:
        if not path.is_file():
            raise UserError(f"no {what} here", where=str(path))
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, most_bytes)
        with np.load(path, allow_pickle=False) as archive:
            return {name: _numbers(name, archive[name]) for name in archive.files}
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, SyntaxError, *_ZIP_FAULTS) as error:
        raise_if_host(error, where=str(path))
        raise UserError(f"cannot be read as {what} ({first_line(error)})", where=str(path)) from error


def _check_members(archive: zipfile.ZipFile, most_bytes: int) -> None:
    """Check by the members' true sizes that an archive stays within its bound when it is unpacked."""
    left = most_bytes
    for member in archive.infolist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            reader = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = reader(stream)
        if dtype.kind not in _NUMBER_KINDS:
            raise ValueError(f"'{member.filename}' holds {dtype}, not numbers")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        left -= max(size, member.file_size)
        if left < 0:
            raise ValueError(f"it unpacks to more than {most_bytes} bytes")
        if member.file_size < size:
            raise ValueError(f"'{member.filename}' is cut short")


def _numbers(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _NUMBER_KINDS:
        raise ValueError(f"'{name}' is no array of numbers")
    return value


def pick(values: Mapping[str, Any], key: str, kind: type[Value], *, where: str, what: str) -> Value:
    """A value of a parsed object, checked to have a type. An int is accepted as a float; a bool is neither.

    Raises:
        UserError: the key is missing or the value has another type.
    """
    value = values.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(
            f"cannot be read as {what} ('{key}' is {value!r:.60}, not {kind.__name__})", where=where
        )
    return value
