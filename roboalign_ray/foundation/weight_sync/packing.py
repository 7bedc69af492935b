"""A model's weights on their way to many holders: packed into buckets, checked, and taken whole or not at all.

    state ──pack──► Manifest + buckets of bytes ──object store, network──► unpack ──► state

A version travels as buckets (contiguous bytes, at most `bucket_bytes` each) and one manifest that says which tensor
lies where and vouches for every byte. `unpack` checks all of it before it hands out anything: a version that is torn
(a bucket is missing), mixed (a bucket of another version) or damaged is refused with an error of its own type. Buckets
may come in any order and more than once.

Zero-copy: an unpacked tensor is a view into its bucket. Copied are only tensors that a bucket's end cuts in two, and
bfloat16 ones when they are widened.

Checksums are CRC-32: they are for accidents, not for attackers. On one core of an AMD EPYC zlib's takes 0.24 s of
processor time for a gigabyte, blake2b 1.1 s. Byte order is the machine's own: both ends must be alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.weight_sync.manifest import (
    Array,
    CorruptVersion,
    Entry,
    Manifest,
    Packing,
    Piece,
    TornVersion,
    checksum_of,
)

_ALIGNMENT = 64  # bytes; every tensor begins at a multiple
_BFLOAT16 = "bfloat16"  # NumPy has no such type: travels as uint16, handed out as float32


def pack(state: Mapping[str, Tensor | Array], version: int, config: Packing) -> tuple[Manifest, list[Array]]:
    """A version of weights as a manifest and buckets.

    Args:
        state: tensors on any device, or arrays.
        version: number of the version, not negative.
        config: sizes and precision.

    Returns:
        The manifest, and one uint8 array per bucket.

    Raises:
        UserError: a negative version, or a type that cannot travel.
    """
    if version < 0:
        raise UserError(f"version {version} is negative", where="weights")
    buckets, entries = _fill([_plan(*item, config) for item in state.items()], config.bucket_bytes)
    sizes = tuple((bucket.size, checksum_of(bucket)) for bucket in buckets)
    manifest = Manifest(version, tuple(entries), sizes)
    return replace(manifest, seal=manifest.expected_seal()), buckets


def unpack(manifest: Manifest, buckets: Sequence[Array]) -> dict[str, Array]:
    """Check a version and hand out its tensors.

    Args:
        manifest: of the version.
        buckets: uint8 arrays, in any order, any of them several times. They must not be written to as long as the
            result is in use.

    Returns:
        Read-only arrays by name, in the state's order, views into `buckets`; bfloat16 widened to float32, which is
        exact.

    Raises:
        TornVersion: buckets are missing.
        CorruptVersion: the manifest does not match its seal, or a bucket not its checksum.
    """
    if manifest.seal != manifest.expected_seal():
        raise CorruptVersion(f"the manifest of version {manifest.version} does not match its seal")
    ordered = _ordered(manifest, buckets)
    return {entry.name: _array(entry, ordered) for entry in manifest.entries}


# --- packing -----------------------------------------------------------------------------------------------------


def _plan(name: str, value: Tensor | Array, config: Packing) -> tuple[Entry, Array]:
    """An entry without pieces, and its bytes."""
    tensor = _tensor(name, value)
    if config.precision == _BFLOAT16 and tensor.dtype == torch.float32:
        tensor = tensor.to(torch.bfloat16)
    flat = tensor.cpu().contiguous().reshape(-1)
    try:
        words = flat.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else flat.numpy()
        data: Array = words.view(f"u{words.itemsize}").view(np.uint8)
    except TypeError:
        raise UserError(f"weights of type {tensor.dtype} cannot travel", where=name) from None
    return Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), ()), data


def _tensor(name: str, value: Tensor | Array) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        # torch warns of arrays that must not be written to, as unpacked ones are.
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    except TypeError:
        raise UserError(f"weights of type {value.dtype} cannot travel", where=name) from None


def _fill(planned: Sequence[tuple[Entry, Array]], capacity: int) -> tuple[list[Array], list[Entry]]:
    """Buckets with all bytes in their places, and the entries that say where."""
    capacity = capacity // _ALIGNMENT * _ALIGNMENT
    ends: list[int] = []  # of each bucket so far
    entries = [replace(entry, pieces=tuple(_lay(data.size, ends, capacity))) for entry, data in planned]
    buckets: list[Array] = [np.zeros(end, np.uint8) for end in ends]
    for entry, (_, data) in zip(entries, planned, strict=True):
        done = 0
        for piece in entry.pieces:
            buckets[piece.bucket][piece.offset : piece.offset + piece.size] = data[done : done + piece.size]
            done += piece.size
    return buckets, entries


def _lay(size: int, ends: list[int], capacity: int) -> Iterator[Piece]:
    """Places for `size` bytes after `ends`, which grow. Cut only what would not fit into an empty bucket either."""
    while size:
        offset = -(-ends[-1] // _ALIGNMENT) * _ALIGNMENT if ends else capacity
        if offset >= capacity or (capacity - offset < size <= capacity):
            ends.append(0)
            offset = 0
        part = min(size, capacity - offset)
        yield Piece(len(ends) - 1, offset, part)
        ends[-1] = offset + part
        size -= part


# --- taking ------------------------------------------------------------------------------------------------------


def _ordered(manifest: Manifest, buckets: Sequence[Array]) -> list[Array]:
    """The manifest's buckets in its order, each checked."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for index, key in enumerate(manifest.buckets):
        wanted.setdefault(key, []).append(index)
    found: dict[int, Array] = {}
    for number, given in enumerate(buckets):
        bucket: Array = np.ascontiguousarray(given).reshape(-1).view(np.uint8)
        if (key := (bucket.nbytes, checksum_of(bucket))) not in wanted:
            raise CorruptVersion(f"bucket {number} of those given is none of version {manifest.version}")
        found.update(dict.fromkeys(wanted[key], bucket))
    if missing := [index for index in range(len(manifest.buckets)) if index not in found]:
        raise TornVersion(
            f"version {manifest.version}: {len(missing)} of {len(manifest.buckets)} buckets are missing"
        )
    return [found[index] for index in range(len(manifest.buckets))]


def _array(entry: Entry, buckets: Sequence[Array]) -> Array:
    data = _bytes_of(entry, buckets)
    if entry.dtype == _BFLOAT16:
        words = np.left_shift(data.view(np.uint16), 16, dtype=np.uint32)
        value = words.view(np.float32).reshape(entry.shape)
    else:
        numpy_type = torch.empty(0, dtype=getattr(torch, entry.dtype)).numpy().dtype
        value = data.view(numpy_type).reshape(entry.shape)
    value.flags.writeable = False  # of this view alone
    return value


def _bytes_of(entry: Entry, buckets: Sequence[Array]) -> Array:
    """An entry's bytes: a view where they lie in one bucket."""
    parts = [buckets[piece.bucket][piece.offset : piece.offset + piece.size] for piece in entry.pieces]
    if not parts:
        return np.zeros(0, np.uint8)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
