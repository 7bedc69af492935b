"""Keys and values of a batch of groups: one shared prefix per group, one preallocated suffix per sample.

    shared  [layers, 2, groups, kv_heads, P, d]        the common prefix of a group's G samples, stored once
    own     [layers, 2, rows, kv_heads, 1 + S, d]      each sample's own tokens; rows = groups * samples

Nothing grows by concatenation: `own` is allocated once per segment at its final size. Its slot 0 holds no token: it
stands for the whole shared prefix while a decode step computes its joint softmax (`attention.py`). Keys are stored with
their rotary phase applied. Positions start at 0 in a segment; after an eviction (the "sinks" policy) they count places
within the cache, so keys that moved are rotated by the distance.

States of a rollout share storage. A continued cache (`continued`) writes after the tokens of the previous one, in the
same storage, unless another cache already continues from there: then it copies the tokens first. Stepping a state once
therefore copies nothing; each further step from the same state copies its `own` tokens once.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # keys and values


class _Storage:
    """The cache that may append to a storage: the last one that was continued."""

    def __init__(self) -> None:
        self.last = 0


class KeyValueCache:
    """One batch's cache over all layers.

    Args:
        shared: [layers, 2, groups, kv_heads, P, d], or None if samples share nothing.
        own: [layers, 2, rows, kv_heads, 1 + S, d]; slot 0 of the keys is set to zero here.
        samples: number of rows per group.
    """

    def __init__(self, shared: Tensor | None, own: Tensor, samples: int) -> None:
        self.own, self.samples, self.length = own, samples, 0
        own[:, :, :, :, 0].zero_()
        self._own_layers: list[Pair] = [(keys, values) for keys, values in own.flatten(2, 3)]
        self._set_shared(shared)
        self._storage, self._turn = _Storage(), 0

    @classmethod
    def empty(
        cls, layers: int, rows: int, heads: int, capacity: int, head_dim: int, *, dtype: torch.dtype, device
    ) -> KeyValueCache:
        """A cache without a shared prefix: every row is its own group."""
        own = torch.empty((layers, 2, rows, heads, 1 + capacity, head_dim), dtype=dtype, device=device)
        return cls(None, own, 1)

    def branch(self, samples: int, capacity: int) -> KeyValueCache:
        """Make each row of this cache the prefix that `samples` new rows share; no keys or values are copied.

        The new rows have their own storage, so this cache may be branched again.
        """
        layers, pair, groups, heads, _, head_dim = self.own.shape
        own = self.own.new_empty((layers, pair, groups * samples, heads, 1 + capacity, head_dim))
        return KeyValueCache(self.own[..., 1 : 1 + self.length, :], own, samples)

    def rebranch(self, prefix: int, capacity: int) -> KeyValueCache:
        """The same groups, restarted after the first `prefix` shared tokens, with empty rows."""
        assert self.shared is not None
        shape = (*self.own.shape[:-2], 1 + capacity, self.own.shape[-1])
        return KeyValueCache(self.shared[..., :prefix, :], self.own.new_empty(shape), self.samples)

    def continued(self, capacity: int, *, copy: bool = False) -> KeyValueCache:
        """A cache with the same tokens and room for `capacity` of them; this cache does not change.

        Args:
            capacity: number of tokens per row after the prefix, including the present ones.
            copy: always use new storage, for a cache that will evict, because eviction moves tokens.
        """
        if not copy and self._turn == self._storage.last and capacity <= self.capacity:
            other = KeyValueCache(self.shared, self.own, self.samples)
            other._storage = self._storage
            other._turn = self._storage.last = self._turn + 1
        else:
            shape = (*self.own.shape[:-2], 1 + max(capacity, self.length), self.own.shape[-1])
            other = KeyValueCache(self.shared, self.own.new_empty(shape), self.samples)
            other.own[..., 1 : 1 + self.length, :] = self.own[..., 1 : 1 + self.length, :]
        other.length = self.length
        return other

    def branched(self, rows: Tensor, samples: int, *, fold: bool) -> KeyValueCache:
        """New groups of `samples` rows each, which continue the chosen rows.

        Args:
            rows: int64 [groups'], on this cache's device.
            samples: number of rows per new group.
            fold: store a chosen row's own tokens once, in the shared prefix of its group. Otherwise every new row gets
                a copy of them: for a policy that evicts, which drops a prefix as a whole.
        """
        shared = None if self.shared is None else self.shared[:, :, rows // self.samples]
        own = self.own[:, :, rows, :, : 1 + self.length]
        if fold:
            own = own[..., 1:, :]
            shared = own if shared is None else torch.cat([shared, own], dim=-2)
            empty = own.new_empty((*own.shape[:2], len(rows) * samples, own.shape[3], 1, own.shape[-1]))
            return KeyValueCache(shared, empty, samples)
        other = KeyValueCache(shared, own.repeat_interleave(samples, dim=2), samples)
        other.length = self.length
        return other

    def taken(self, groups: Tensor) -> KeyValueCache:
        """Copies of chosen groups of a cache without a prefix, one row each: int64 [groups'] of their numbers."""
        other = KeyValueCache(None, self.own[:, :, groups], 1)
        other.length = self.length
        return other

    def groups_block(self, first: int, last: int) -> KeyValueCache:
        """A view on groups [first, last): it writes to this cache's storage, but has its own `length`."""
        shared = None if self.shared is None else self.shared[:, :, first:last]
        own = self.own[:, :, first * self.samples : last * self.samples]
        block = KeyValueCache(shared, own, self.samples)
        block.length = self.length
        return block

    def _set_shared(self, shared: Tensor | None) -> None:
        self.shared = None if shared is None or shared.shape[-2] == 0 else shared
        self.prefix = 0 if self.shared is None else self.shared.shape[-2]
        self._shared_layers: list[Pair | None] = [None] * len(self._own_layers)
        if self.shared is not None:
            self._shared_layers = [(keys, values) for keys, values in self.shared]

    @property
    def groups(self) -> int:
        """Number of groups in the batch."""
        return self.own.shape[2] // self.samples

    @property
    def capacity(self) -> int:
        """Number of tokens per row that `own` has room for."""
        return self.own.shape[-2] - 1

    @property
    def position(self) -> int:
        """Position of the next token, which is also the number of tokens it attends to before itself."""
        return self.prefix + self.length

    @property
    def bytes_per_group(self) -> int:
        """Bytes of keys and values held in memory for one group, including unused parts of preallocated suffixes."""
        held = self.own.untyped_storage().nbytes()
        if self.shared is not None:
            held += self.shared.untyped_storage().nbytes()
        return held // self.groups

    def layer(self, index: int) -> tuple[Pair | None, Pair]:
        """One layer's (shared keys and values [groups, heads, P, d], or None; own ones [rows * heads, 1 + S, d])."""
        return self._shared_layers[index], self._own_layers[index]

    def slots(self, index: int, start: int, count: int) -> Tensor:
        """The slots of one layer's next keys and values: [2, rows, heads, count, d]."""
        return self.own[index].narrow(3, 1 + start, count)

    def evict(self, sinks: int, tokens: int, turn: Tensor, lead: int = 0) -> None:
        """Remove tokens between the sinks and the recent frames, and close the gap.

        The first call drops the shared prefix except its first `sinks` tokens, and the `lead` of every row; later calls
        drop the oldest `tokens` of every row. Kept keys move to lower positions and are rotated accordingly.

        Args:
            sinks: number of tokens kept at the start; at most the prefix.
            tokens: number of tokens of a frame with its action.
            lead: number of first tokens of a row that belong to the prefix's last frame: its action, if rows differ in
                it.
            turn: complex64 [max distance + 1, d/2], unit phases by distance (`PackedTransformer.phases`).
        """
        if self.prefix > sinks:
            distance, dropped = self.prefix - sinks + lead, lead
            assert self.shared is not None
            self._set_shared(self.shared[..., :sinks, :].clone())  # a copy, so that the rest is freed
        else:
            distance = dropped = tokens
        tokens_own = self.own[..., 1 : 1 + self.length, :]
        self.length -= dropped
        kept = tokens_own[..., : self.length, :]
        if dropped:
            kept.copy_(tokens_own[..., dropped:, :].clone())
        pairs = torch.view_as_complex(kept[:, 0].float().unflatten(-1, (-1, 2)).contiguous())
        kept[:, 0] = torch.view_as_real(pairs * turn[distance].conj()).flatten(-2).to(kept.dtype)
