"""The one interface behind which every source of episodes stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from roboalign_ray.episodes.episode import Episode


@dataclass(frozen=True)
class Quarantined:
    """An episode that cannot be used. A value, not an exception: the rest of the source goes on.

    Attributes:
        episode_id: which episode, as the source would have named it.
        reason: one line, fit for a table.
    """

    episode_id: str
    reason: str


@runtime_checkable
class EpisodeSource(Protocol):
    """Anything that yields episodes: a simulator, a dataset on disk, a store.

    Attributes:
        name: first part of every episode id of this source.
    """

    name: str

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Every episode in a fixed order; those that cannot be used come as `Quarantined`.

        Raises:
            UserError: the source as a whole cannot be read (missing folder, missing package).
        """
        ...
