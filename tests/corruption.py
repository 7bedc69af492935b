"""Damaged files for tests: bytes and JSON spoiled in every common way, and a meter for what reading one of them costs.

All damage follows from the random generator alone, so a failing number can be made again.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXTREMES = [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
JUNK_VALUES: list[Any] = [
    None,
    0,
    -1,
    1.5,
    1e308,
    2**40,
    2**80,
    -(2**80),
    "",
    " ",
    "junk {nowhere}",
    "[/red]",
    "[bold]x",
    "../../etc/passwd",
    "/etc/passwd",
    "{episode_index:0999999999d}",
    "{x.__class__}",
    "\x00",
    "\ud800",
    "a\nb\tc",
    "x" * 70_000,
    [],
    [[]],
    [None],
    [1, [2]],
    {},
    {"a": []},
    True,
    False,
    float("nan"),
    float("inf"),
]


# --- bytes ------------------------------------------------------------------------------------------------------


def _span(raw: bytes, rng: random.Random) -> tuple[int, int]:
    """A random stretch of the bytes, short ones more often."""
    start = rng.randrange(len(raw))
    return start, min(len(raw), start + 1 + int(len(raw) * rng.random() ** 4))


def _noise(rng: random.Random, size: int) -> bytes:
    return rng.getrandbits(8 * size).to_bytes(size, "little") if size else b""


def flipped_bit(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_bits(raw: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(2, 40)):
        raw = flipped_bit(raw, rng)
    return raw


def flipped_bit_near_an_end(raw: bytes, rng: random.Random) -> bytes:
    """Headers and footers hold what sizes everything else."""
    changed = bytearray(raw)
    distance = rng.randrange(min(len(raw), 256))
    changed[distance if rng.random() < 0.5 else -1 - distance] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_short(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def cut_at_the_front(raw: bytes, rng: random.Random) -> bytes:
    return raw[1 + rng.randrange(len(raw)) :]


def hole(raw: bytes, rng: random.Random) -> bytes:
    start, end = _span(raw, rng)
    return raw[:start] + raw[end:]


def zeroed(raw: bytes, rng: random.Random) -> bytes:
    start, end = _span(raw, rng)
    return raw[:start] + bytes(end - start) + raw[end:]


def ones(raw: bytes, rng: random.Random) -> bytes:
    start, end = _span(raw, rng)
    return raw[:start] + b"\xff" * (end - start) + raw[end:]


def noise(raw: bytes, rng: random.Random) -> bytes:
    start, end = _span(raw, rng)
    return raw[:start] + _noise(rng, end - start) + raw[end:]


def inserted(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + _noise(rng, rng.randint(1, 64)) + raw[at:]


def repeated(raw: bytes, rng: random.Random) -> bytes:
    start, end = _span(raw, rng)
    return raw[:end] + raw[start:end] + raw[end:]


def swapped(raw: bytes, rng: random.Random) -> bytes:
    """Two neighbouring stretches change places."""
    start, end = _span(raw, rng)
    middle = rng.randint(start, end)
    return raw[:start] + raw[middle:end] + raw[start:middle] + raw[end:]


def extreme_number(raw: bytes, rng: random.Random) -> bytes:
    """A field of 2, 4 or 8 bytes becomes an extreme integer, in either byte order."""
    size = rng.choice([2, 4, 8])
    value = rng.choice(EXTREMES) & ((1 << 8 * size) - 1)
    at = rng.randrange(max(1, len(raw) - size))
    return raw[:at] + value.to_bytes(size, rng.choice(["little", "big"])) + raw[at + size :]


def appended(raw: bytes, rng: random.Random) -> bytes:
    return raw + _noise(rng, rng.randint(1, 500))


def emptied(raw: bytes, rng: random.Random) -> bytes:
    return b""


def replaced(raw: bytes, rng: random.Random) -> bytes:
    """Random bytes behind the first few, which still tell the format."""
    kept = rng.choice([0, 4, 8, 16])
    return raw[:kept] + _noise(rng, max(0, len(raw) - kept))


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    flipped_bit,
    flipped_bit,
    flipped_bits,
    flipped_bit_near_an_end,
    flipped_bit_near_an_end,
    cut_short,
    cut_at_the_front,
    hole,
    zeroed,
    ones,
    noise,
    inserted,
    repeated,
    swapped,
    extreme_number,
    extreme_number,
    appended,
    emptied,
    replaced,
]


def damaged(raw: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Bytes spoiled in one way, and the name of the way. Empty input stays empty or grows."""
    damage = rng.choice(DAMAGES) if raw else appended
    return damage.__name__, damage(raw, rng)


# --- JSON -------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of every key and list element in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield (*path, key)
        yield from places(child, (*path, key))


def with_value(value: Any, path: tuple, junk: Any, *, remove: bool = False) -> Any:
    """A copy in which the place at `path` holds `junk`, or is gone."""
    changed = copy.deepcopy(value)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if remove:
        del parent[path[-1]]
    else:
        parent[path[-1]] = junk
    return changed


def damaged_json(text: str, rng: random.Random) -> tuple[str, bytes]:
    """A JSON document, or the first line of JSON Lines, with one value changed, or spoiled as bytes or by nesting."""
    way = rng.choice(["value", "value", "value", "removed", "bytes", "nested", "number", "mark"])
    lines = text.splitlines()
    try:
        rest, value = "", json.loads(text)
    except ValueError:
        rest, value = "\n" + "\n".join(lines[1:]), json.loads(lines[0])
    paths = list(places(value))
    if way == "bytes" or not paths:
        name, raw = damaged(text.encode(), rng)
        return name, raw
    if way == "mark":
        return way, b"\xef\xbb\xbf" + text.encode() if rng.random() < 0.5 else text.encode("utf-16")
    if way == "nested":
        depth = rng.choice([100, 5_000, 200_000])
        bracket = rng.choice([("[", "]"), ('{"a":', "}")])
        junk = '"\\u0000deep"'
        inner = json.dumps(with_value(value, rng.choice(paths), "\x00deep"))
        return way, (inner.replace(junk, bracket[0] * depth + "1" + bracket[1] * depth) + rest).encode()
    if way == "number":
        inner = json.dumps(with_value(value, rng.choice(paths), "\x00deep"))
        number = rng.choice(["1e999", "-1e999", "9" * 5_000, "0" * 30, "1e-999", "NaN", "-Infinity"])
        return way, (inner.replace('"\\u0000deep"', number) + rest).encode()
    changed = with_value(value, rng.choice(paths), rng.choice(JUNK_VALUES), remove=way == "removed")
    return way, (json.dumps(changed) + rest).encode()


def damaged_file(path: Path, rng: random.Random) -> tuple[str, bytes]:
    """The bytes of a file, spoiled as its ending suggests; the file itself stays as it is."""
    raw = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.8:
        return damaged_json(raw.decode(), rng)
    return damaged(raw, rng)


# --- what reading costs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a call did.

    Attributes:
        result: what it returned; None where it raised.
        error: what it raised; None where it returned.
        seconds: of the processor, over all threads of this process.
        megabytes: how much the resident memory of this process grew at its peak.
    """

    result: Any
    error: BaseException | None
    seconds: float
    megabytes: float


def measured(action: Callable[[], Any]) -> Cost:
    """Call `action`, and tell its result or exception, its processor time and its peak of memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = _memory_kb("VmRSS"), time.process_time()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    seconds = time.process_time() - started
    return Cost(result, error, seconds, max(0, _memory_kb("VmHWM") - before) / 1024)


def _memory_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(field)


# --- files that are small and claim to be large -----------------------------------------------------------------


def png_bomb(height: int, width: int) -> bytes:
    """A valid PNG of one colour whose decoded picture is `height` x `width`, a few kilobytes a megapixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = b"\x00" + bytes(3 * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zlib_bomb(size: int) -> bytes:
    """`size` zero bytes, compressed about a thousandfold."""
    packer = zlib.compressobj(9)
    blocks, block = [], bytes(1 << 20)
    for _ in range(size >> 20):
        blocks.append(packer.compress(block))
    blocks.append(packer.compress(bytes(size & 0xFFFFF)) + packer.flush())
    return b"".join(blocks)
