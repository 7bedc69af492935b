"""The experience buffer: scored groups between their scorer and the update that trains on them.

    add ──► held ──take──► taken ──commit──► gone
                    ▲          │
                    └─rollback─┘

It holds references and numbers, never rollouts. References are opaque to it. A group is taken once: when its update is
committed, the group is removed; after a rollback, it has its former place.

Groups whose samples all have the same reward have advantage zero everywhere, so only the KL term gives a gradient. They
are counted and, with "resample", refused, so that others are made in their place (dynamic sampling, arXiv 2503.14476).
The number of refusals is limited, because a policy may become so good or so bad that hardly any group's rewards differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

FEWEST_SAMPLES = 2  # one sample cannot be compared


@dataclass(frozen=True)
class Held:
    """One group of the buffer.

    Attributes:
        group: its number, which is the order of starting.
        reference: opaque reference to its rollout and scores.
        rewards: total per sample; NaN if the sample failed.
    """

    group: int
    reference: Any
    rewards: tuple[float, ...]


class Worth(StrEnum):
    """Training value of a group. FLAT: all valid rewards are equal. UNUSABLE: fewer than two are valid."""

    USEFUL = "useful"
    FLAT = "flat"
    UNUSABLE = "unusable"


def worth_of(rewards: Sequence[float]) -> Worth:
    """The training value of a group's rewards; non-finite ones are ignored."""
    valid = [reward for reward in rewards if math.isfinite(reward)]
    if len(valid) < FEWEST_SAMPLES:
        return Worth.UNUSABLE
    return Worth.FLAT if min(valid) == max(valid) else Worth.USEFUL


class ExperienceBuffer:
    """Scored groups, trained in the order in which they were started.

    Args:
        flat_groups: "keep" trains on flat and unusable groups like on all others; "resample" refuses them.
        resample_limit: maximum of groups refused between two commits; further ones are kept.

    Attributes:
        counts: number of groups added by their training value, and "resampled", "committed", "rolled_back", "removed".
    """

    def __init__(
        self, flat_groups: Literal["keep", "resample"] = "keep", *, resample_limit: int = 64
    ) -> None:
        self.flat_groups, self.resample_limit = flat_groups, resample_limit
        self.counts: Counter[str] = Counter()
        self._held: dict[int, Held] = {}
        self._taken: tuple[int, ...] = ()
        self._refused = 0  # number since the last commit

    def __len__(self) -> int:
        """Number of groups that can be taken."""
        return len(self._held) - len(self._taken)

    def __contains__(self, group: int) -> bool:
        return group in self._held

    @property
    def taken(self) -> tuple[int, ...]:
        """Groups that are taken, and neither committed nor rolled back."""
        return self._taken

    def add(self, group: int, reference: Any, rewards: Sequence[float]) -> bool:
        """Add a group. Return False if it is refused: the caller discards it and makes another one.

        Raises:
            ValueError: the group is already in the buffer.
        """
        if group in self._held:
            raise ValueError(f"group {group} is in the buffer already")
        worth = worth_of(rewards)
        self.counts[worth.value] += 1
        resample = self.flat_groups == "resample" and self._refused < self.resample_limit
        if worth is not Worth.USEFUL and resample:
            self._refused += 1
            self.counts["resampled"] += 1
            return False
        self._held[group] = Held(group, reference, tuple(float(reward) for reward in rewards))
        return True

    def oldest(self, count: int) -> tuple[int, ...] | None:
        """The `count` groups that were started first, in that order; None if there are fewer."""
        if len(self) < count:
            return None
        return tuple(sorted(self._held.keys() - set(self._taken))[:count])

    def take(self, groups: Sequence[int]) -> tuple[Held, ...]:
        """Take these groups, in this order, for one update. `commit` or `rollback` must follow.

        Raises:
            ValueError: other groups are taken, a group is not in the buffer, or a group is named twice.
        """
        if self._taken:
            raise ValueError("an update's groups are taken already")
        if missing := [group for group in groups if group not in self._held]:
            raise ValueError(f"group {missing[0]} is not in the buffer")
        if len(set(groups)) < len(groups):
            raise ValueError("a group is named twice")
        self._taken = tuple(groups)
        return tuple(self._held[group] for group in groups)

    def commit(self) -> None:
        """The update is complete: remove its groups."""
        for group in self._taken:
            del self._held[group]
        self.counts["committed"] += len(self._taken)
        self._taken, self._refused = (), 0

    def rollback(self) -> None:
        """The update failed: its groups can be taken again."""
        if (
            self._taken
        ):  # without the test, a resumed run would have a count that another run has no entry for
            self.counts["rolled_back"] += len(self._taken)
        self._taken = ()

    def remove(self, groups: Iterable[int]) -> None:
        """Remove groups that are too old or were lost.

        Raises:
            ValueError: a group is taken or not in the buffer.
        """
        for group in groups:
            if group in self._taken or group not in self._held:
                raise ValueError(
                    f"group {group} is {'taken' if group in self._taken else 'not in the buffer'}"
                )
            del self._held[group]
            self.counts["removed"] += 1

    def state_dict(self, pack: Callable[[Any], Any] = lambda reference: reference) -> dict[str, Any]:
        """All groups, including taken ones.

        Args:
            pack: returns the JSON form of a reference.
        """
        return {
            "groups": [
                [held.group, pack(held.reference), list(held.rewards)]
                for _, held in sorted(self._held.items())
            ],
            "taken": list(self._taken),
            "refused": self._refused,
            "counts": dict(self.counts),
        }

    def load_state_dict(
        self, state: dict[str, Any], unpack: Callable[[Any], Any] = lambda packed: packed
    ) -> None:
        """Restore a `state_dict`. Call `rollback` afterwards if an update was interrupted."""
        self._held = {
            int(group): Held(int(group), unpack(packed), tuple(rewards))
            for group, packed, rewards in state["groups"]
        }
        self._taken, self._refused = tuple(state["taken"]), int(state["refused"])
        self.counts = Counter(state["counts"])
