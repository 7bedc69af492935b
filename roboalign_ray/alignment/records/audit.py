"""Audits a finished alignment run: checks its guarantees on its journal and its ledger.

    journal lines ─┐
                   ├─► audit ─► one `Finding` per promise: does it hold, and in figures
    ledger state ──┘

Pure. Journal and ledger are independent records, and they must agree on every group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMED = 8  # limit on groups or updates that a line names one by one


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        promise: the guarantee.
        holds: whether it holds.
        detail: one line of figures, or the violation.
    """

    promise: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class RunRecord:
    """Records of a run.

    Attributes:
        journal: its lines in order, JSON types: trained groups, and attempts that failed.
        ledger: `StalenessLedger.state_dict()` of the last checkpoint.
        prompt_of: the prompt of a group's number.
        updates: number of updates configured.
    """

    journal: Sequence[Mapping[str, Any]]
    ledger: Mapping[str, Any]
    prompt_of: Callable[[int], str]
    updates: int

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """Lines of groups that were trained."""
        return [line for line in self.journal if "scores" in line]

    @property
    def lost(self) -> tuple[int, ...]:
        """Lost groups: not trained, not dropped, and their prompt not set aside.

        The ledger counts dropped groups without naming them, so that number of missing groups is taken as dropped.
        """
        trained = {int(line["group"]) for line in self.trained}
        aside = set(self.ledger["set_aside"])
        missing = [
            number
            for number in range(int(self.ledger["position"]))
            if number not in trained and self.prompt_of(number) not in aside
        ]
        return tuple(missing[int(self.ledger["counts"].get("dropped", 0)) :])

    @property
    def twice(self) -> tuple[int, ...]:
        """Groups that were trained more than once."""
        times = Counter(int(line["group"]) for line in self.trained)
        return tuple(sorted(number for number, count in times.items() if count > 1))


def audit(record: RunRecord) -> tuple[Finding, ...]:
    """One finding per guarantee."""
    return (
        _complete(record),
        _whole_batches(record),
        _none_lost(record),
        _none_twice(record),
        _reasons(record),
        _bound(record),
        _permits(record),
    )


def _complete(record: RunRecord) -> Finding:
    version, updates = int(record.ledger["version"]), record.updates
    detail = f"{version} of {updates} updates"
    return Finding("the run completes", version == updates, detail)


def _whole_batches(record: RunRecord) -> Finding:
    batch = int(record.ledger["batch"])
    sizes = Counter(int(line["update"]) for line in record.trained)
    wrong = [update for update in range(record.updates) if sizes.pop(update, 0) != batch] + sorted(sizes)
    detail = f"violated: {_listed(wrong)}" if wrong else f"{record.updates} × {batch} groups"
    return Finding("every update trains one whole batch", not wrong, detail)


def _none_lost(record: RunRecord) -> Finding:
    lost = record.lost
    detail = f"{len(lost)} of {record.ledger['position']} groups lost" + (
        f": {_listed(lost)}" if lost else ""
    )
    return Finding("no group is lost", not lost, detail)


def _none_twice(record: RunRecord) -> Finding:
    twice = record.twice
    detail = f"{len(twice)} trained twice" + (f": {_listed(twice)}" if twice else "")
    return Finding("no group is trained twice", not twice, detail)


def _reasons(record: RunRecord) -> Finding:
    """Check that a prompt was set aside only after failures that are in the journal."""
    explained = {line["prompt"] for line in record.journal if line.get("failed")}
    silent = sorted(set(record.ledger["set_aside"]) - explained)
    aside, failed = len(record.ledger["set_aside"]), sum("failed" in line for line in record.journal)
    detail = f"{failed} attempts failed, {aside} prompts set aside"
    return Finding(
        "what failed has a reason",
        not silent,
        f"{detail}; without a reason: {silent[0]}" if silent else detail,
    )


def _bound(record: RunRecord) -> Finding:
    bound = int(record.ledger["staleness"])
    ages = [int(line["update"]) - min(line["versions"]) for line in record.trained]
    ahead = [int(line["update"]) - max(line["versions"]) for line in record.trained]
    holds = all(age <= bound for age in ages) and all(age >= 0 for age in ahead)
    oldest, newest = max(ages, default=0), min(ahead, default=0)
    detail = f"oldest weights {oldest} versions old, bound {bound}" + (
        f"; weights of {-newest} versions to come" if newest < 0 else ""
    )
    return Finding("the bound on staleness holds", holds, detail)


def _permits(record: RunRecord) -> Finding:
    """Check that no group is in flight at the end, and that the counts add up."""
    left, counts = record.ledger["groups"], record.ledger["counts"]
    started, trained, dropped, aside = (
        int(counts.get(name, 0)) for name in ("started", "trained", "dropped", "set_aside")
    )
    detail = f"{len(left)} out; {started} started = {trained} trained + {dropped} dropped + {aside} set aside"
    return Finding("every permit is back", not left and started == trained + dropped + aside, detail)


def _listed(numbers: Sequence[int]) -> str:
    named = ", ".join(str(number) for number in numbers[:_NAMED])
    return f"{named} and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else named
