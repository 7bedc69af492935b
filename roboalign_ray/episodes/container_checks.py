"""Checks a video file's structure before FFmpeg reads it: truncation, and tables that would fill the memory.

FFmpeg builds an index with one entry for each sample that an mp4's tables name, and a table may name billions in a few
bytes. A Matroska or AVI file states its length, but FFmpeg reads a truncated one without an error.
Layouts: ISO/IEC 14496-12 (mp4), RFC 8794 and RFC 9559 (Matroska), Microsoft RIFF (AVI).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

_EBML, _SEGMENT, _VOID = 0x1A45DFA3, 0x18538067, 0xEC
_INSIDE = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts"}
# FFmpeg also reads a moov box inside these, if one of its children comes first.
_DISGUISED, _FIRST_IN_MOOV = {b"free", b"hoov", b"skip"}, {b"cmov", b"mvhd"}
_MOST_BOXES, _DEEPEST = 200_000, 8
_MOST_REPEATS = 4
_RIFF_SLACK = 16  # tolerance in bytes for wrong lengths in files


def check_container(file: BinaryIO) -> None:
    """Check a file's structure. The file position is at the beginning afterwards.

    Raises:
        ValueError: the file is empty or truncated, or its tables name more samples than it can hold.
    """
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise ValueError("the file is empty")
    file.seek(0)
    head = file.read(12)
    if head[:4] == _EBML.to_bytes(4, "big"):
        _check_matroska(file, size)
    elif head[:4] == b"RIFF":
        stated = int.from_bytes(head[4:8], "little")
        if stated not in (0, 0xFFFFFFFF) and stated + 8 > size + _RIFF_SLACK:
            raise ValueError(f"it is truncated: {size} of {stated + 8} bytes are there")
    else:
        _check_boxes(file, size)
    file.seek(0)


def _check_matroska(file: BinaryIO, size: int) -> None:
    position = 0
    for _ in range(16):  # the header, possibly padding, then the segment
        file.seek(position)
        head = file.read(12)
        name, wide = _number(head, with_length=True)
        length, wider = _number(head[wide:], with_length=False)
        if length is None:
            return  # unknown length, as in live recordings
        position += wide + wider + length
        if name == _SEGMENT and position > size:
            raise ValueError(f"it is truncated: {size} of {position} bytes are there")
        if name not in (_EBML, _VOID):
            return


def _number(data: bytes, *, with_length: bool) -> tuple[int | None, int]:
    """A number of variable length and its number of bytes; None if it means "unknown" or is invalid.

    Args:
        data: at least 8 bytes, unless the file is shorter.
        with_length: whether the bit that marks the length belongs to the number, as in an element's name.
    """
    if not data or not data[0]:
        return None, 0
    wide = 9 - data[0].bit_length()
    number = int.from_bytes(data[:wide], "big")
    if with_length:
        return number, wide
    number &= (1 << 7 * wide) - 1
    return (None if number == (1 << 7 * wide) - 1 else number), wide


def _check_boxes(file: BinaryIO, size: int) -> None:
    samples = edits = 0
    for number, (kind, start, end) in enumerate(_boxes(file, 0, size, 0)):
        if number >= _MOST_BOXES:
            raise ValueError(f"it holds more than {_MOST_BOXES} boxes")
        if kind == b"cmov":
            raise ValueError("its index is compressed, which is not read")
        if kind in (b"stsz", b"stz2", b"trun"):
            samples += _count(file, start + (4 if kind == b"trun" else 8), end)
        elif kind == b"elst":
            edits = max(edits, _count(file, start + 4, end))
        elif kind in (b"stts", b"ctts") and (named := _runs(file, start, end)) > size:
            raise ValueError(f"its tables name {named} samples, more than its {size} bytes can hold")
        # Each edit may show all samples again, and FFmpeg's index repeats them.
        if samples > size or samples * edits > _MOST_REPEATS * size:
            raise ValueError(f"its tables name {samples} samples, more than its {size} bytes can hold")


def _boxes(file: BinaryIO, start: int, end: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Every box as (kind, first byte of its content, byte after it), including nested ones."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(24)
        if len(head) < 8:
            return
        length, kind, skip = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, skip = int.from_bytes(head[8:16], "big"), 16
        close = end if length == 0 else min(end, start + length)
        if length and length < skip:
            return
        yield kind, start + skip, close
        disguised = kind in _DISGUISED and head[skip + 4 : skip + 8] in _FIRST_IN_MOOV
        if (kind in _INSIDE or disguised) and depth < _DEEPEST:
            yield from _boxes(file, start + skip, close, depth + 1)
        start = close


def _count(file: BinaryIO, start: int, end: int) -> int:
    """The 32-bit number at `start`: a table's number of entries."""
    file.seek(start)
    return int.from_bytes(file.read(4), "big") if start + 4 <= end else 0


def _runs(file: BinaryIO, start: int, end: int) -> int:
    """The sum of the counts in a table of (count, value) pairs of 32 bits."""
    file.seek(start + 4)
    entries = int.from_bytes(file.read(4), "big")
    data = file.read(8 * min(entries, max(0, end - start - 8) // 8))
    return int(np.frombuffer(data[: len(data) // 8 * 8], ">u4")[::2].sum(dtype=np.uint64))
