"""TFRecord files and tf.train.Example messages, read without TensorFlow.

A TFRecord file is a chain of frames, all integers little-endian:

    uint64 length | uint32 masked CRC-32C of the length | payload | uint32 masked CRC-32C of the payload

and each payload is a protobuf `tf.train.Example`: a map from feature name to a list of bytes, floats or int64s.
Both checksums are verified: a damaged payload costs that one record, a damaged length costs the rest of the file,
because nothing after it can be found.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bit-reversed
_MASK_DELTA = 0xA282EAD8  # added after rotation, so that a checksum of a checksum stays well distributed
MOST_RECORD_BYTES = 1 << 30
_LANES = 256  # payloads are cut in this many lanes and the lanes' checksums advanced together

FeatureValue: TypeAlias = list[bytes] | np.ndarray
"""What one feature holds: bytes in a list, or a float32 or int64 array [N]."""


@dataclass(frozen=True)
class CorruptRecord:
    """A record whose bytes cannot be trusted.

    Attributes:
        index: position of the record in its file, from 0.
        offset: byte at which its frame starts.
        reason: one line.
        ends_file: True where the records after it cannot be found either.
    """

    index: int
    offset: int
    reason: str
    ends_file: bool


@cache
def _byte_table() -> np.ndarray:
    """CRC-32C of every single byte, uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@cache
def _zeros_table(length: int) -> np.ndarray:
    """Effect of `length` zero bytes on a checksum register, as tables uint32 [4, 256] (one per register byte)."""
    table = _byte_table()
    effect = np.arange(256, dtype=np.uint32)[None, :] << (np.arange(4, dtype=np.uint32) * 8)[:, None]
    for _ in range(length):
        effect = table[effect & 0xFF] ^ (effect >> 8)
    return effect


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`.

    The register is linear over GF(2), so the data are cut in equal lanes that advance in step and are joined
    afterwards: two orders of magnitude faster than a loop over bytes.
    """
    table = _byte_table()
    values = np.frombuffer(data, np.uint8)
    lane_length = len(values) // _LANES
    register = np.uint32(0xFFFFFFFF)
    body = lane_length * _LANES
    if body:
        lanes_LN = values[:body].reshape(_LANES, lane_length)
        crcs = np.zeros(_LANES, np.uint32)
        crcs[0] = register
        for column in np.ascontiguousarray(lanes_LN.T):
            crcs = table[(crcs ^ column) & 0xFF] ^ (crcs >> 8)
        shift = _zeros_table(lane_length)
        register = crcs[0]
        for crc in crcs[1:]:
            register = _shifted(register, shift) ^ crc
    for value in values[body:]:
        register = table[(register ^ value) & 0xFF] ^ (register >> np.uint32(8))
    return int(register) ^ 0xFFFFFFFF


def _shifted(register: np.uint32, shift: np.ndarray) -> np.uint32:
    value = int(register)
    return (
        shift[0, value & 0xFF]
        ^ shift[1, value >> 8 & 0xFF]
        ^ shift[2, value >> 16 & 0xFF]
        ^ shift[3, value >> 24]
    )


def masked_crc32c(data: bytes) -> int:
    """The checksum as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[bytes | CorruptRecord]:
    """Payloads of a TFRecord file in order; a damaged one arrives as a `CorruptRecord` in its place.

    Raises:
        OSError: the file cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        index = offset = 0
        while offset < size:
            header = file.read(12)
            reason = _header_fault(header, size - offset)
            if reason:
                yield CorruptRecord(index, offset, reason, ends_file=True)
                return
            (length,) = struct.unpack("<Q", header[:8])
            if length > MOST_RECORD_BYTES:
                yield CorruptRecord(
                    index, offset, f"a record of {length >> 20} MB is too large", ends_file=False
                )
                file.seek(length + 4, os.SEEK_CUR)
            else:
                yield _payload(file, index, offset, length)
            offset += 16 + length
            index += 1


def _payload(file: BinaryIO, index: int, offset: int, length: int) -> bytes | CorruptRecord:
    payload, checksum = file.read(length), file.read(4)
    if len(checksum) == 4 and masked_crc32c(payload) == int.from_bytes(checksum, "little"):
        return payload
    return CorruptRecord(index, offset, "payload checksum does not match", ends_file=False)


def _header_fault(header: bytes, remaining: int) -> str:
    """Why a frame header cannot be followed; "" where it can."""
    if len(header) < 12:
        return f"file ends inside a record header ({len(header)} of 12 bytes)"
    length, expected = struct.unpack("<QI", header)
    if masked_crc32c(header[:8]) != expected:
        return "length checksum does not match"
    if 16 + length > remaining:
        return f"file ends inside a record ({remaining} of {16 + length} bytes)"
    return ""


def write_records(path: Path, payloads: list[bytes]) -> None:
    """Write payloads as a TFRecord file with valid checksums."""
    with path.open("wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(payload + struct.pack("<I", masked_crc32c(payload)))


def parse_example(payload: bytes) -> dict[str, FeatureValue]:
    """Features of a serialised `tf.train.Example`.

    Returns:
        name -> list of bytes, float32 [N] or int64 [N]; a feature without a value is an empty list.

    Raises:
        EpisodeError: the bytes are not such a message.
    """
    try:
        features: dict[str, FeatureValue] = {}
        for feature_map in _messages(memoryview(payload), 1):
            for entry in _messages(feature_map, 1):
                (name,) = _messages(entry, 1)
                features[bytes(name).decode()] = _feature(b"".join(_messages(entry, 2)))
        return features
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise EpisodeError(f"not a tf.train.Example message ({type(error).__name__}: {error})") from error


def _feature(message: bytes) -> FeatureValue:
    """One Feature: field 1 bytes_list, 2 float_list, 3 int64_list, each with its values in field 1."""
    view = memoryview(message)
    for values in _messages(view, 1):
        return [bytes(value) for value in _messages(values, 1)]
    for values in _messages(view, 2):
        return np.frombuffer(b"".join(_messages(values, 1)), "<f4").astype(np.float32)
    for values in _messages(view, 3):
        return np.concatenate([np.empty(0, np.int64), *_int64s(values)])
    return []


def _int64s(message: memoryview) -> Iterator[np.ndarray]:
    """The numbers of an Int64List: int64 [N] for every packed field, [1] for every single one."""
    for number, value in _fields(message):
        if number != 1:
            continue
        if isinstance(value, int):  # not packed
            yield np.array([value & 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.int64)
        else:
            yield _varints(np.frombuffer(value, np.uint8))


def _varints(data: np.ndarray) -> np.ndarray:
    """Base-128 integers one after the other, uint8 [n], as int64; all numbers at once, byte by byte of each."""
    ends = np.flatnonzero(data < 0x80)
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1):
        raise ValueError("message ends inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else ends
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > 10:
        raise ValueError("varint longer than ten bytes")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max()) if len(lengths) else 0):
        longer = np.flatnonzero(lengths > place)
        part = (data[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * place)
    return values.view(np.int64)


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The bytes of every field of that number."""
    for found, value in _fields(message):
        if found == number:
            if isinstance(value, int):
                raise ValueError(f"field {number} is an integer")
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) pairs of a protobuf message: int for varints, a view of the bytes otherwise."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        value: memoryview | int
        if wire_type == 0:
            value, position = _varint(message, position)
        elif wire_type in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire_type, 0)
            if wire_type == 2:
                length, position = _varint(message, position)
            value = message[position : position + length]
            position += length
            if len(value) != length:
                raise ValueError("message ends inside a field")
        else:
            raise ValueError(f"wire type {wire_type}")
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """An unsigned base-128 integer and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("varint longer than ten bytes")
