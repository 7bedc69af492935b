"""Which videos of a labelling job are to be asked about, which are done, and which are set aside.

A pure state machine: it owns no clock, no thread and no file. An item is begun, then labelled or failed; a failed one
is offered again until its tries are used up, alone, so that one that kills its teacher takes no other with it. An item
that was begun and never ended (its process died) has used up that try too: nothing is tried for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Event = Literal["begun", "labelled", "failed"]


class LabelLedger:
    """Counts tries per item id.

    Args:
        retries: further tries after a failed one.
        labelled: ids whose labels are kept already.

    Attributes:
        failures: failed tries in all.
        set_aside: id -> why its last try failed, for items with no try left.
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
        """Ids begun and not ended."""
        return frozenset(self._in_flight)

    def wanted(self, item: str) -> bool:
        """Whether a new item should be asked about: not labelled, not set aside, not under way or waiting."""
        return not (
            item in self._labelled or item in self.set_aside or item in self._in_flight or item in self._again
        )

    def next_again(self) -> str | None:
        """The next failed item to be tried once more; None: there is none."""
        return self._again.popleft() if self._again else None

    def begin(self, item: str) -> None:
        """A try begins."""
        self._tries[item] = self._tries.get(item, 0) + 1
        self._in_flight.add(item)

    def succeed(self, item: str) -> bool:
        """A try gave a label. False: there is one already, and this one is not to be kept."""
        self._in_flight.discard(item)
        if item in self._labelled:
            return False
        self._labelled.add(item)
        self.set_aside.pop(item, None)
        return True

    def fail(self, item: str, reason: str) -> bool:
        """A try failed. True: it will be offered again; False: it is set aside."""
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
        """Take up the journal of an earlier run: {"event", "item", "reason"} in order.

        Labels that the earlier run did not get round to keeping are asked for again, and do not count as failed tries.
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
                self.set_aside[item] = reasons.get(item, "its tries ended with the process")
