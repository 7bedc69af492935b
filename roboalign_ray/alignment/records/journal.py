"""Reads the journal of an alignment run: which groups were trained, what determined them, and their scores.

A line holds all that is needed to recompute a group: prompt, seeds, weight version per segment, and the groups of its
rollout batch. `compare_scores` compares the recomputed scores with those in the journal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.readers import read_lines

Score = Mapping[str, Any]  # score of a sample in the journal


@dataclass(frozen=True)
class JournalGroup:
    """One trained group.

    Attributes:
        group, update: its number, and the update (from 0) that trained it.
        prompt, seeds: its prompt and seeds.
        versions: weight version per segment.
        scores: one per sample.
        together: numbers of the groups of its rollout batch, including its own; only its own in older runs.
    """

    group: int
    update: int
    prompt: str
    seeds: tuple[int, ...]
    versions: tuple[int, ...]
    scores: tuple[Score, ...]
    together: tuple[int, ...]

    @property
    def scorers(self) -> set[int]:
        """Versions of the scorer that scored its samples; empty if all failed."""
        return {int(score.get("scorer_version", 0)) for score in self.scores if "failed" not in score}


class Verdict(StrEnum):
    """Result for a recomputed group. GONE: its weights or its scorer no longer exist."""

    EQUAL = "equal"
    CLOSE = "close"
    DIFFERS = "differs"
    GONE = "gone"


@dataclass(frozen=True)
class Comparison:
    """A group's scores in the journal and now.

    Attributes:
        difference: largest difference of any figure; NaN if there is none to compare.
        why: reason in one line, if it differs or is gone.
    """

    group: JournalGroup
    verdict: Verdict
    difference: float = math.nan
    why: str = ""


def read_journal(path: Path) -> list[JournalGroup]:
    """The trained groups in order, without failed attempts and without an incomplete last line.

    Raises:
        UserError: there is no journal, or a line is invalid.
    """
    if not path.is_file():
        raise UserError("no journal of a run", where=str(path), remedy="give the folder of an alignment run")
    groups = []
    for entry in read_lines(path, "journal line"):
        if "scores" in entry:
            try:
                groups.append(_group(entry))
            except (ValueError, LookupError, TypeError, OverflowError) as error:
                where = f"{path}, group {entry.get('group')}"
                raise UserError(f"is no line of a journal ({first_line(error)})", where=where) from error
    return groups


def compare_scores(group: JournalGroup, now: Sequence[Score], tolerance: float) -> Comparison:
    """Compare a group's scores in the journal with those now, sample by sample and figure by figure.

    Args:
        group: the group with its scores in the journal.
        now: the same samples' scores now.
        tolerance: largest difference that counts as close.
    """
    if len(now) != len(group.scores):
        return Comparison(group, Verdict.DIFFERS, why=f"{len(now)} samples instead of {len(group.scores)}")
    largest = 0.0
    for place, (before, after) in enumerate(zip(group.scores, now, strict=True)):
        if before.get("kind") != after.get("kind") or before.keys() != after.keys():
            why = f"sample {place}: {_score_summary(after)} instead of {_score_summary(before)}"
            return Comparison(group, Verdict.DIFFERS, why=why)
        if "failed" not in before:
            largest = max([largest, *(_difference(before[name], after[name]) for name in before)])
    if largest == 0.0:
        return Comparison(group, Verdict.EQUAL, 0.0)
    if largest <= tolerance:
        return Comparison(group, Verdict.CLOSE, largest)
    return Comparison(group, Verdict.DIFFERS, largest, f"a score differs by {largest:.3g}")


def _group(entry: Mapping[str, Any]) -> JournalGroup:
    number = int(entry["group"])
    return JournalGroup(
        group=number,
        update=int(entry["update"]),
        prompt=str(entry["prompt"]),
        seeds=tuple(entry["seeds"]),
        versions=tuple(entry["versions"]),
        scores=tuple(entry["scores"]),
        together=tuple(entry.get("together", [number])),
    )


def _difference(before: float, after: float) -> float:
    """Difference of two figures; 0 if both are NaN."""
    if before == after or (math.isnan(before) and math.isnan(after)):
        return 0.0
    difference = abs(before - after)
    return difference if math.isfinite(difference) else math.inf


def _score_summary(score: Score) -> str:
    return f"failed ({score['kind']})" if "failed" in score else f"scored ({', '.join(sorted(score))})"
