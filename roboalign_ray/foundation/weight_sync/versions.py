"""Which version of the weights is the newest, and what a holder of an older one, or of none, needs to get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from roboalign_ray.foundation.weight_sync.manifest import BaseMissing, Manifest, TornVersion


@dataclass(frozen=True)
class Parcel:
    """A manifest, and its buckets or whatever stands for them (references to an object store)."""

    manifest: Manifest
    buckets: tuple[Any, ...]


class VersionBoard:
    """Which version is the newest, and what a holder needs to get there. Pure: it keeps references, no bytes.

    Only complete versions are told of. Kept are the last full version and the changes since.
    """

    def __init__(self) -> None:
        self._chain: list[Parcel] = []

    @property
    def newest(self) -> int | None:
        """Number of the newest version; None before the first."""
        return self._chain[-1].manifest.version if self._chain else None

    def post(self, parcel: Parcel) -> None:
        """Tell of a version; from now on it is the newest.

        Raises:
            TornVersion: not as many buckets as the manifest names.
            BaseMissing: it changes weights that are not the newest here.
            ValueError: it is not newer than the newest; a learner that went back to a checkpoint clears first.
        """
        manifest = parcel.manifest
        if len(parcel.buckets) != len(manifest.buckets):
            raise TornVersion(
                f"version {manifest.version} came with {len(parcel.buckets)} of {len(manifest.buckets)} buckets"
            )
        if self.newest is not None and manifest.version <= self.newest:
            raise ValueError(f"version {manifest.version} is not newer than {self.newest}")
        if not manifest.base:
            self._chain = [parcel]
        elif self._chain and manifest.base == self._chain[-1].manifest.digest:
            self._chain.append(parcel)
        else:
            raise BaseMissing(
                f"version {manifest.version} changes weights {manifest.base}, not the newest here"
            )

    def clear(self) -> None:
        """Forget all versions."""
        self._chain = []

    def fetch(self, digest: str = "") -> list[Parcel]:
        """What a holder of the weights `digest` applies, in this order, to hold the newest; nothing if it does."""
        for number, parcel in enumerate(self._chain):
            if parcel.manifest.digest == digest:
                return self._chain[number + 1 :]
        return list(self._chain)
