"""What a version of weights is on its way: a manifest over buckets of bytes."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class WeightsRefused(RuntimeError):
    """A version of weights that cannot be taken."""


class TornVersion(WeightsRefused):
    """Buckets of the version are missing: wait for them, or ask again."""


class CorruptVersion(WeightsRefused):
    """Bytes that the manifest does not vouch for: damaged, or of another version."""


class Packing(Protocol):
    """How to pack: `roboalign_ray.config.weights.WeightsConfig`, which explains the fields."""

    @property
    def bucket_bytes(self) -> int: ...
    @property
    def precision(self) -> str: ...


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
        pieces: where its bytes lie, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """What a version consists of.

    Attributes:
        version: its number.
        entries: every tensor, in the state's order.
        buckets: (bytes, CRC-32) of each.
        seal: digest of all of the above.
    """

    version: int
    entries: tuple[Entry, ...]
    buckets: tuple[tuple[int, int], ...]
    seal: str = ""

    @property
    def size(self) -> int:
        """Bytes that travel."""
        return sum(size for size, _ in self.buckets)

    def expected_seal(self) -> str:
        """What `seal` must be."""
        content = repr((self.version, self.entries, self.buckets))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Parcel:
    """A manifest, and its buckets or whatever stands for them (references to an object store)."""

    manifest: Manifest
    buckets: tuple[Any, ...]


def checksum_of(data: Array) -> int:
    """CRC-32 of a contiguous array's bytes."""
    return zlib.crc32(data.reshape(-1).view(np.uint8).data)
