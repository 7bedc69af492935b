"""The experience buffer: finished, scored groups between their scorer and the update that trains on them.

    add ──► held ──take──► taken ──commit──► gone
                    ▲          │
                    └─rollback─┘

It holds references and numbers, never tokens: what a reference is, is the caller's business. A group is taken once:
either its update is committed and it is gone, or it is rolled back and stands where it stood.

Groups whose samples all have the same reward have advantage zero everywhere: nothing to learn from but the KL. They
are counted and, if asked for, refused so that others are made in their place (dynamic sampling, arXiv 2503.14476); not
without end, since a policy may become so good or so bad that hardly any group differs within.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

FEWEST_SAMPLES = 2  # one sample has nothing to be compared with


@dataclass(frozen=True)
class Held:
    """One group of the buffer.

    Attributes:
        group: its number, which gives the order of starting.
        reference: whatever leads to its tokens and scores.
        rewards: total per sample; NaN where a sample failed.
    """

    group: int
    reference: Any
    rewards: tuple[float, ...]


class Worth(StrEnum):
    """What a group can teach. FLAT: all valid rewards are equal. UNUSABLE: fewer than two are valid."""

    USEFUL = "useful"
    FLAT = "flat"
    UNUSABLE = "unusable"


def worth_of(rewards: Sequence[float]) -> Worth:
    """Whether a group's rewards differ; those that are not finite take no part."""
    valid = [reward for reward in rewards if math.isfinite(reward)]
    if len(valid) < FEWEST_SAMPLES:
        return Worth.UNUSABLE
    return Worth.FLAT if min(valid) == max(valid) else Worth.USEFUL


class ExperienceBuffer:
    """Finished groups, first started, first trained.

    Args:
        flat_groups: "keep" trains on groups that are flat or unusable like on all others; "resample" refuses them.
        resample_limit: groups refused between two commits at most; more than that are kept.

    Attributes:
        counts: groups added by their worth, and "resampled", "committed", "rolled_back", "removed".
    """

    def __init__(
        self, flat_groups: Literal["keep", "resample"] = "keep", *, resample_limit: int = 64
    ) -> None:
        self.flat_groups, self.resample_limit = flat_groups, resample_limit
        self.counts: Counter[str] = Counter()
        self._held: dict[int, Held] = {}
        self._taken: tuple[int, ...] = ()
        self._refused = 0  # since the last commit

    def __len__(self) -> int:
        """Groups that can be taken."""
        return len(self._held) - len(self._taken)

    def __contains__(self, group: int) -> bool:
        return group in self._held

    @property
    def taken(self) -> tuple[int, ...]:
        """Groups taken and neither committed nor rolled back."""
        return self._taken

    def add(self, group: int, reference: Any, rewards: Sequence[float]) -> bool:
        """Put a group in. False where it is refused: the caller discards it and has another one made.

        Raises:
            ValueError: the group is in the buffer already.
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
        """The `count` groups that were started first, in that order; None where there are fewer."""
        if len(self) < count:
            return None
        return tuple(sorted(self._held.keys() - set(self._taken))[:count])

    def take(self, groups: Sequence[int]) -> tuple[Held, ...]:
        """These groups, in this order, for one update: call `commit` after it, or `rollback`.

        Raises:
            ValueError: others are taken, one is not here, or one is named twice.
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
        """The update is done: what it took is gone."""
        for group in self._taken:
            del self._held[group]
        self.counts["committed"] += len(self._taken)
        self._taken, self._refused = (), 0

    def rollback(self) -> None:
        """The update did not happen: what it took can be taken again."""
        if self._taken:  # else a run that was resumed would count what one that was not has no entry for
            self.counts["rolled_back"] += len(self._taken)
        self._taken = ()

    def remove(self, groups: Iterable[int]) -> None:
        """Forget groups that are too old or were lost.

        Raises:
            ValueError: one is taken or not here.
        """
        for group in groups:
            if group in self._taken or group not in self._held:
                raise ValueError(
                    f"group {group} is {'taken' if group in self._taken else 'not in the buffer'}"
                )
            del self._held[group]
            self.counts["removed"] += 1

    def state_dict(self, pack: Callable[[Any], Any] = lambda reference: reference) -> dict[str, Any]:
        """All groups, those taken included.

        Args:
            pack: makes of a reference what can be written to a checkpoint.
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
        """Take up what `state_dict` gave; call `rollback` afterwards where an update was cut short."""
        self._held = {
            int(group): Held(int(group), unpack(packed), tuple(rewards))
            for group, packed, rewards in state["groups"]
        }
        self._taken, self._refused = tuple(state["taken"]), int(state["refused"])
        self.counts = Counter(state["counts"])
