"""The journals of a run's groups and of its judge's events: appended line by line, and cut back to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import pick, read_lines
from roboalign_ray.pipelines.align.loop import Update

WRITTEN_AFTER = "written_after"  # key of the judge's events: the update after which the event was written


def write_journal(path: Path, update: Update) -> None:
    """One line per trained group, with all that determined it, and one per failed attempt."""
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
    """One line per event of the judge: the update that it is about, and the update after which it was written."""
    if events:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"update": update, **event, WRITTEN_AFTER: update}) + "\n" for event in events
            )


def cut_journal(path: Path, updates_done: int, key: str = "update") -> None:
    """Drop lines that were written after the checkpoint, and an incomplete last line.

    Args:
        key: key of a line's update.
    """
    if not path.exists():
        return
    kept = []
    for line in read_lines(path, "journal line"):
        written = key if key in line else "update"
        if written in line and pick(line, written, int, where=str(path), what="journal line") < updates_done:
            kept.append(json.dumps(line) + "\n")
    with whole_file(
        path
    ) as draft:  # if the disk is full or the process ends here, the kept lines are not lost
        draft.write_text("".join(kept), encoding="utf-8")
