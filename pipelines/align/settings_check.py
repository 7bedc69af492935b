"""Checks whether a run may resume with the given settings. Differing settings are named, with old and new value."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.config.resume import ALIGNMENT, Difference, differences
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import read_object

SETTINGS = "settings.json"
_MOST_LINES = 8  # limit on settings that are named one by one


def check_same_job(before: Any, config: JobConfig, where: str) -> list[Difference]:
    """Check that an alignment run resumes with its original settings, except those in `config.resume.ALIGNMENT`.

    Args:
        before: original settings, as JSON.

    Returns:
        The settings that differ and are allowed to.

    Raises:
        UserError: other settings differ (`details` has their old and new values), or `before` holds no settings.
    """
    if not isinstance(before, dict):
        raise UserError("does not hold settings of a job", where=where, remedy="start in another folder")
    unasked = set() if config.judge.relabel.teacher == "vlm" else {"teacher"}
    return check_settings(before, config, where, {*ALIGNMENT, *unasked})


def check_settings(
    before: Mapping[str, Any], config: JobConfig, where: str, may_change: Collection[str]
) -> list[Difference]:
    """Compare settings.

    Args:
        may_change: dotted paths of sections and values.

    Returns:
        The settings that differ and are allowed to.

    Raises:
        UserError: other settings differ.
    """
    found = differences(before, config.public(), JobConfig().public())
    wrong = [difference for difference in found if not difference.under(may_change)]
    if wrong:
        first = ", ".join(difference.path for difference in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"the run began with another value of {first}{more}",
            where=where,
            remedy="resume with the same ones, or begin a new run: --fork takes a checkpoint as its start",
            details="\n".join(listed(wrong)),
        )
    return found


def listed(found: Sequence[Difference]) -> list[str]:
    """One line per difference, up to a limit."""
    lines = [difference.line() for difference in found[:_MOST_LINES]]
    more = len(found) - len(lines)
    return [*lines, f"and {more} more"] if more else lines


def note_changes(found: Sequence[Difference]) -> None:
    """Print the settings that changed, one per line."""
    for line in listed(found):
        print(f"note: the run continues with another {line}", file=sys.stderr)


def keep_settings(
    folder: Path,
    config: JobConfig,
    check: Callable[[Mapping[str, Any], JobConfig, str], Any],
    made: Sequence[Path],
) -> None:
    """Check that a folder's content was made with these settings, except those that may change; else write them there.

    Args:
        check: called with the stored settings, these settings, and the folder, like `check_same_job`.
        made: existing content; if there is none, nothing is checked.

    Raises:
        UserError: the stored settings are others or are missing.
    """
    path = folder / SETTINGS
    if made:
        if not path.is_file():
            raise UserError(
                f"its content was made with unknown settings: there is no {SETTINGS}",
                where=str(folder),
                remedy="start in another folder",
            )
        check(read_object(path, "settings of the run"), config, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        draft.write_text(json.dumps(config.public(), indent=2) + "\n", encoding="utf-8")
