"""A model's weights on their way to many holders: packed into buckets, checked, and taken whole or not at all.

    state ──pack──► Manifest + buckets of bytes ──object store, network──► Receiver.apply ──► Snapshot

A version travels as buckets (contiguous bytes, at most `bucket_bytes` each) and one manifest that says which tensor
lies where and vouches for every byte. A receiver checks all of it before it takes anything: a version that is torn
(a bucket is missing), mixed (a bucket of another version) or damaged is refused with an error of its own type, and the
receiver keeps what it has. Buckets may come in any order and more than once.

Zero-copy: a received tensor is a view into its bucket. Copied are only tensors that a bucket's end cuts in two,
tensors of which some blocks changed, and bfloat16 ones when they are widened.

A version may also travel as what changed since another one (`WeightsConfig.changed_only`). It then names its base by
content, so it cannot be laid upon anything else.

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
    BFLOAT16,
    Array,
    BaseMissing,
    CorruptVersion,
    Entry,
    Held,
    Manifest,
    Packing,
    Piece,
    Snapshot,
    TornVersion,
    checksum_of,
    read_only,
    short_digest,
)

_ALIGNMENT = 64  # bytes; every tensor begins at a multiple


def pack(
    state: Mapping[str, Tensor | Array],
    version: int,
    config: Packing,
    previous: Snapshot | None = None,
) -> tuple[Manifest, list[Array]]:
    """A version of weights as a manifest and buckets.

    Args:
        state: tensors on any device, or arrays.
        version: number of the version, not negative.
        config: sizes and precision.
        previous: what the receivers hold (a `Receiver` beside the sender that applies what it packs has it). With
            `config.changed_only` the version is told as changes to it; else it is not looked at.

    Returns:
        The manifest, and one uint8 array per bucket.

    Raises:
        UserError: a negative version, or a type that cannot travel.
    """
    if version < 0:
        raise UserError(f"version {version} is negative", where="weights")
    base = previous if config.changed_only and version % config.full_every else None
    planned = [_plan(name, value, base, config) for name, value in state.items()]
    if base and all(entry.kind == "whole" for entry, _ in planned):
        base = None
    buckets, entries = _fill(planned, config.bucket_bytes)
    manifest = Manifest(
        version=version,
        digest=short_digest([(e.name, e.dtype, e.shape, e.checksum) for e in entries]),
        base=base.digest if base else "",
        entries=tuple(entries),
        buckets=tuple((bucket.size, checksum_of(bucket)) for bucket in buckets),
    )
    return replace(manifest, seal=manifest.expected_seal()), buckets


class Receiver:
    """Holds the last version that came whole."""

    def __init__(self) -> None:
        self.current: Snapshot | None = None

    @property
    def digest(self) -> str:
        """Of the weights held; "" before the first ones."""
        return self.current.digest if self.current else ""

    def apply(self, manifest: Manifest, buckets: Sequence[Array]) -> Snapshot:
        """Check a version and hold it, older ones than the present one too; which is wanted, the caller knows.

        The second time nothing happens, and buckets are not needed. The snapshot's arrays are views into `buckets`,
        which must not be written to as long as the snapshot is in use.

        Args:
            manifest: of the version.
            buckets: uint8 arrays, in any order, any of them several times.

        Raises:
            TornVersion: buckets are missing.
            CorruptVersion: the manifest does not match its seal, or a bucket or a patched tensor not its checksum.
            BaseMissing: the version changes weights that are not held here.
        """
        if manifest.seal != manifest.expected_seal():
            raise CorruptVersion(f"the manifest of version {manifest.version} does not match its seal")
        held = self.current
        if held and (held.version, held.digest) == (manifest.version, manifest.digest):
            return held
        if manifest.base and manifest.base != self.digest:
            have = f"version {held.version}" if held else "none"
            raise BaseMissing(
                f"version {manifest.version} is told as changes to weights {manifest.base}; held: {have}"
            )
        ordered = _ordered(manifest, buckets)
        tensors = {entry.name: _take(entry, ordered, held) for entry in manifest.entries}
        self.current = Snapshot(manifest.version, manifest.digest, tensors)
        return self.current


# --- packing -----------------------------------------------------------------------------------------------------


def _plan(name: str, value: Tensor | Array, base: Snapshot | None, config: Packing) -> tuple[Entry, Array]:
    """An entry without pieces, and the bytes it needs."""
    tensor = _tensor(name, value)
    if config.precision == BFLOAT16 and tensor.dtype == torch.float32:
        tensor = tensor.to(torch.bfloat16)
    dtype, shape, words = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _words(name, tensor)
    checksum = checksum_of(words)
    old = base.tensors.get(name) if base else None
    if old is None or (old.dtype, old.shape) != (dtype, shape):
        return Entry(name, dtype, shape, "whole", 0, checksum, ()), words.view(np.uint8)
    patch = _changes(old.words, words, config.block)
    if patch.size >= words.nbytes > 0:
        return Entry(name, dtype, shape, "whole", 0, checksum, ()), words.view(np.uint8)
    return Entry(name, dtype, shape, "patch" if patch.size else "same", config.block, checksum, ()), patch


def _tensor(name: str, value: Tensor | Array) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        # torch warns of arrays that must not be written to, as a snapshot's are.
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    except TypeError:
        raise UserError(f"weights of type {value.dtype} cannot travel", where=name) from None


def _words(name: str, tensor: Tensor) -> Array:
    """A tensor's elements, flat, as unsigned integers; a view where the tensor allows."""
    flat = tensor.cpu().contiguous().reshape(-1)
    try:
        values = flat.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else flat.numpy()
        return values.view(f"u{values.itemsize}")
    except TypeError:
        raise UserError(f"weights of type {tensor.dtype} cannot travel", where=name) from None


def _changes(old: Array, new: Array, block: int) -> Array:
    """A bit per block, padded to eight bytes, and the changed blocks' bytes; empty where nothing changed."""
    differs = old != new
    if not differs.any():
        return np.zeros(0, np.uint8)
    if block > 1:
        differs = np.logical_or.reduceat(differs, np.arange(0, differs.size, block))
    chosen: Array = new[_elements(differs, block, new.size)].view(np.uint8)
    patch: Array = np.zeros(_bitmap_bytes(differs.size) + chosen.size, np.uint8)
    bits = np.packbits(differs)
    patch[: bits.size] = bits
    patch[patch.size - chosen.size :] = chosen
    return patch


def _elements(blocks: Array, block: int, size: int) -> Array:
    """A mask of blocks as a mask of elements."""
    return np.repeat(blocks, min(block, size))[:size] if block > 1 else blocks


def _bitmap_bytes(blocks: int) -> int:
    return -(-blocks // 64) * 8


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


def _take(entry: Entry, buckets: Sequence[Array], held: Snapshot | None) -> Held:
    if entry.kind == "whole":
        words: Array = _bytes_of(entry, buckets).view(_word_type(entry.dtype))
        return Held(entry.dtype, entry.shape, read_only(words), entry.checksum)
    assert held is not None  # an entry that needs a base stands in a manifest that names one
    old = held.tensors[entry.name]
    if entry.kind == "same":
        return old
    words = old.words.copy()
    data, blocks = _bytes_of(entry, buckets), -(-words.size // entry.block)
    bits: Array = np.unpackbits(data[: -(-blocks // 8)], count=blocks).view(bool)
    values = data[_bitmap_bytes(blocks) :].view(words.dtype)
    words[_elements(bits, entry.block, words.size)] = values
    if checksum_of(words) != entry.checksum:
        raise CorruptVersion(f"{entry.name} does not match its checksum after its changes were laid on")
    return Held(entry.dtype, entry.shape, read_only(words), entry.checksum)


def _bytes_of(entry: Entry, buckets: Sequence[Array]) -> Array:
    """An entry's bytes: a view where they lie in one bucket."""
    parts = [buckets[piece.bucket][piece.offset : piece.offset + piece.size] for piece in entry.pieces]
    if not parts:
        return np.zeros(0, np.uint8)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _word_type(dtype: str) -> str:
    return f"u{getattr(torch, dtype).itemsize}"
