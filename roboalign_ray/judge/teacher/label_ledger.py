"""Tracks which videos of a labelling job are to be labelled, which are done, and which are set aside.

A pure state machine without clock, thread or file. An item is begun, then labelled or failed. A failed item is offered
again until its attempts are used up; it is then in a batch of its own, so that an item that kills its teacher affects
no other. An item that was begun but never ended (its process died) has used up that attempt too, so the number of
attempts is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Event = Literal["begun", "labelled", "failed"]


class LabelLedger:
    """Counts attempts per item id.

    Args:
        retries: further attempts after a failed one.
        labelled: ids whose labels are already stored.

    Attributes:
        failures: total number of failed attempts.
        set_aside: id -> reason of its last failure, for items without attempts left.
    """

    def __init__(self, retries: int, labelled: Iterable[str] = ()) -> None:
        self.retries = retries
        self.failures = 0
        self.set_aside: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._labelled = set(labelled)
        self._in_flight: set[str] = set()
        self._again: deque[str] = deque()

    @property
    def labelled(self) -> frozenset[str]:
        """Ids with a label."""
        return frozenset(self._labelled)

    @property
    def in_flight(self) -> frozenset[str]:
        """Ids that were begun and have not ended."""
        return frozenset(self._in_flight)

    def wanted(self, item: str) -> bool:
        """Whether a new item should be labelled: it is not labelled, set aside, in flight or waiting."""
        return not (
            item in self._labelled or item in self.set_aside or item in self._in_flight or item in self._again
        )

    def next_again(self) -> str | None:
        """The next failed item to be tried again, or None."""
        return self._again.popleft() if self._again else None

    def begin(self, item: str) -> None:
        """Record the start of an attempt."""
        self._tries[item] = self._tries.get(item, 0) + 1
        self._in_flight.add(item)

    def succeed(self, item: str) -> bool:
        """Record a label. Return False if the item already has one; then the new label must be dropped."""
        self._in_flight.discard(item)
        if item in self._labelled:
            return False
        self._labelled.add(item)
        self.set_aside.pop(item, None)
        return True

    def fail(self, item: str, reason: str) -> bool:
        """Record a failed attempt. Return True if the item will be offered again, False if it is set aside."""
        self._in_flight.discard(item)
        self.failures += 1
        if item in self._labelled:
            return False
        if self._tries.get(item, 0) <= self.retries:
            self._again.append(item)
            return True
        self.set_aside[item] = reason
        return False

    def replay(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Restore the state from the journal of an earlier run: {"event", "item", "reason"} in order.

        Items whose labels the earlier run did not store are labelled again; this does not count as a failed attempt.
        """
        open_tries: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for event in events:
            item = str(event["item"])
            if event["event"] == "begun":
                open_tries[item] = open_tries.get(item, 0) + 1
            elif event["event"] == "labelled":
                open_tries.pop(item, None)
            elif event["event"] == "failed":
                reasons[item] = str(event.get("reason", ""))
                self.failures += 1
        for item, tries in open_tries.items():
            if item in self._labelled:
                continue
            self._tries[item] = tries
            if tries > self.retries:
                self.set_aside[item] = reasons.get(item, "every attempt ended with the process")
