"""The journal of a run's groups, and of what happened to its judge: written line by line, cut to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import pick, read_lines
from roboalign_ray.pipelines.align.loop import Update

TOLD = "told"  # in the judge's events: after which update each was written down


def write_journal(path: Path, update: Update) -> None:
    """One line per trained group, with all that made it, and one per attempt that failed."""
    lines = [{"group": number, **finished.record.as_json()} for number, finished in update.groups]
    lines += [
        {
            "group": ticket.number,
            "prompt": ticket.name.prompt_id,
            "attempt": ticket.attempt,
            "failed": failed.reason,
            "kind": failed.kind,
        }
        for ticket, failed in update.failures
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"update": update.index, **line}) + "\n" for line in lines)


def write_events(path: Path, update: int, events: Sequence[Mapping[str, Any]]) -> None:
    """One line per thing that happened to the judge: the update it is about, and the one after which it was told."""
    if events:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"update": update, **event, TOLD: update}) + "\n" for event in events)


def cut_journal(path: Path, updates_done: int, key: str = "update") -> None:
    """Drop what was written after the checkpoint, and a torn last line.

    Args:
        key: of a line's update.
    """
    if not path.exists():
        return
    kept = []
    for line in read_lines(path, "journal line"):
        written = key if key in line else "update"
        if written in line and pick(line, written, int, where=str(path), what="journal line") < updates_done:
            kept.append(json.dumps(line) + "\n")
    with whole_file(path) as draft:  # a full disk, or an end here, must not cost the lines that are kept
        draft.write_text("".join(kept), encoding="utf-8")
