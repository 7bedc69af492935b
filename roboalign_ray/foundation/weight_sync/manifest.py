"""What a version of weights is: on its way (a manifest over buckets of bytes) and once it is held (a snapshot)."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["whole", "patch", "same"]
BFLOAT16 = "bfloat16"  # NumPy has no such type: held as uint16, handed out as float32


class WeightsRefused(RuntimeError):
    """A version of weights that a receiver does not take; it keeps the one that it has."""


class TornVersion(WeightsRefused):
    """Buckets of the version are missing: wait for them, or ask again."""


class CorruptVersion(WeightsRefused):
    """Bytes that the manifest does not vouch for: damaged, or of another version."""


class BaseMissing(WeightsRefused):
    """The version is told as changes to one that the receiver does not have: ask for a full one."""


class Packing(Protocol):
    """How to pack: `roboalign_ray.config.weights.WeightsConfig`, which explains the fields."""

    @property
    def bucket_bytes(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def changed_only(self) -> bool: ...
    @property
    def block(self) -> int: ...
    @property
    def full_every(self) -> int: ...


@dataclass(frozen=True)
class Piece:
    """A run of bytes inside a bucket."""

    bucket: int
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One tensor of a version.

    Attributes:
        dtype: on the way, by its torch name ("float32").
        kind: "whole"; "patch", a bit per block and the bytes of the blocks that changed; or "same" as in the base.
        block: elements of a patch's block.
        checksum: of the whole tensor's bytes, after a patch was laid on.
        pieces: where its bytes lie, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    block: int
    checksum: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """What a version consists of.

    Attributes:
        version: its number.
        digest: of the weights themselves: names, types, shapes and bytes, however they travel.
        base: digest of the weights that this version is told as changes to; "" where it is told in full.
        entries: every tensor, in the state's order.
        buckets: (bytes, CRC-32) of each.
        seal: digest of all of the above.
    """

    version: int
    digest: str
    base: str
    entries: tuple[Entry, ...]
    buckets: tuple[tuple[int, int], ...]
    seal: str = ""

    @property
    def size(self) -> int:
        """Bytes that travel."""
        return sum(size for size, _ in self.buckets)

    def expected_seal(self) -> str:
        """What `seal` must be."""
        return short_digest((self.version, self.digest, self.base, self.entries, self.buckets))


@dataclass(frozen=True)
class Held:
    """One tensor as it travels: flat words, bfloat16 among them as uint16."""

    dtype: str
    shape: tuple[int, ...]
    words: Array
    checksum: int


@dataclass(frozen=True)
class Snapshot:
    """One complete version. Nothing writes into it once it is there."""

    version: int
    digest: str
    tensors: Mapping[str, Held]

    @cached_property
    def state(self) -> dict[str, Array]:
        """Read-only arrays by name, in the state's order; bfloat16 widened to float32, which is exact."""
        return {name: _array(held) for name, held in self.tensors.items()}


def checksum_of(data: Array) -> int:
    """CRC-32 of a contiguous array's bytes."""
    return zlib.crc32(data.reshape(-1).view(np.uint8).data)


def short_digest(value: object) -> str:
    """A short digest of plain values and frozen dataclasses, the same in every process."""
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def read_only(words: Array) -> Array:
    """A view that cannot be written through."""
    view = words.view()
    view.flags.writeable = False
    return view


def _array(held: Held) -> Array:
    if held.dtype == BFLOAT16:
        words = np.left_shift(held.words, 16, dtype=np.uint32)
        return read_only(words.view(np.float32).reshape(held.shape))
    numpy_type = torch.empty(0, dtype=getattr(torch, held.dtype)).numpy().dtype
    return held.words.view(numpy_type).reshape(held.shape)
