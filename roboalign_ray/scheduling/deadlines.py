"""Groups in flight by the version whose deadline they have: the arithmetic of the staleness ledger.

A lane holds the groups of one version w. They may be trained in update w + eta at the latest, and the next update V
trains exactly B groups. All groups can be trained in time if and only if, for every update d >= V,

    #{groups with w + eta <= d} <= (d - V + 1) B,

which is earliest-deadline-first scheduling of unit jobs on a machine that processes B of them at a time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from heapq import heappop, heappush


@dataclass
class Lane:
    """Groups of one version: `ready` is sorted; `heap` holds the running ones and some that have ended."""

    ready: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    heap: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ready) + len(self.running)

    def first_running(self) -> float:
        """Smallest number of a running group; infinity if none runs."""
        while self.heap and self.heap[0] not in self.running:
            heappop(self.heap)
        return self.heap[0] if self.heap else float("inf")


class Lanes:
    """All lanes. `running` and `ready` count the groups in them."""

    def __init__(self, batch: int, staleness: int) -> None:
        self.batch, self.staleness = batch, staleness
        self.running = self.ready = 0
        self._by_version: dict[int, Lane] = {}

    def enter(self, group: int, version: int, *, ready: bool) -> None:
        """Add a group to its version's lane."""
        lane = self._by_version.setdefault(version, Lane())
        if ready:
            insort(lane.ready, group)
            self.ready += 1
        else:
            lane.running.add(group)
            heappush(lane.heap, group)
            self.running += 1

    def leave(self, group: int, version: int, *, ready: bool) -> None:
        """Remove a group."""
        lane = self._by_version[version]
        if ready:
            del lane.ready[bisect_left(lane.ready, group)]
            self.ready -= 1
        else:
            lane.running.remove(group)
            self.running -= 1
        if not len(lane):
            del self._by_version[version]

    def room(self, version: int, now: int, taken: int) -> int:
        """Number of groups of `version` that can be added so that all groups can still be trained in time.

        Args:
            now: V, the next update.
            taken: places in that update that are already used.
        """
        if version + self.staleness < now:
            return 0
        under_way = taken + sum(len(lane) for w, lane in self._by_version.items() if w <= version)
        least = self._places(version, now) - under_way
        for later in range(version + 1, now + 1):
            if later in self._by_version:
                under_way += len(self._by_version[later])
            least = min(least, self._places(later, now) - under_way)
        return least

    def oldest(self) -> list[int] | None:
        """The B oldest groups in flight, by version, then number; None if one of them still runs."""
        batch: list[int] = []
        for version in sorted(self._by_version):
            lane = self._by_version[version]
            share = min(self.batch - len(batch), len(lane))
            if bisect_left(lane.ready, lane.first_running()) < share:
                return None
            batch += lane.ready[:share]
            if len(batch) == self.batch:
                return batch
        return None

    def oldest_ready(self, now: int, *, in_time: bool) -> list[int] | None:
        """The B oldest ready groups, by version, then number; None if there are fewer.

        Args:
            now: V, the update that trains them.
            in_time: also None if the remaining groups could then not all be trained in time.
        """
        batch: list[int] = []
        left = 0
        for version in sorted(self._by_version):
            lane = self._by_version[version]
            share = min(self.batch - len(batch), len(lane.ready))
            batch += lane.ready[:share]
            left += len(lane) - share
            if in_time and left > self._places(version, now + 1):
                return None
        return batch if len(batch) == self.batch else None

    def ready_before(self, version: int) -> list[int]:
        """Number of ready groups of older versions than this one."""
        return [g for w in sorted(self._by_version) if w < version for g in self._by_version[w].ready]

    def _places(self, version: int, now: int) -> int:
        """Number of places in the updates from `now` to the last one in which groups of `version` may be trained."""
        return (version + self.staleness - now + 1) * self.batch
