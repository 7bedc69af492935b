"""The interface of episode sources, and the handling of errors in single records."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.foundation.failures import ReportedError, UserError, first_line, printable, raise_if_host

_LONGEST_REASON = 400


@dataclass(frozen=True)
class Quarantined:
    """An episode that cannot be used. A value, not an exception, so that the rest of the source is read.

    Attributes:
        episode_id: id that the episode would have had.
        reason: one line, fit for a table.
    """

    episode_id: str
    reason: str


Record = tuple[str, Callable[[], Episode | Quarantined]]
"""An episode's id, and a function that reads the episode."""


@runtime_checkable
class EpisodeSource(Protocol):
    """A source of episodes: a simulator, a dataset on disk, a store.

    Attributes:
        name: first part of every episode id of this source.
    """

    name: str

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Every episode in a fixed order; episodes that cannot be used are `Quarantined`.

        Raises:
            UserError: the source as a whole cannot be read (missing folder, missing package).
        """
        ...


def read_or_quarantine(
    episode_id: str, read: Callable[[], Episode], *, reword: Callable[[str], str] = str
) -> Episode | Quarantined:
    """Read one record of a source. Only here are errors of damaged records separated from the rest of a conversion.

    Args:
        episode_id: id of the record.
        read: reads the record.
        reword: last change to the reason, such as shortening file names.

    Returns:
        The episode, or the reason why it cannot be used. An unexpected exception becomes a reason too; it has the type
        and the line of code, because it may be a mistake in this program.

    Raises:
        HostError: the machine stopped the work (full disk, no memory, no permission): not an error of the record.
    """
    try:
        return read()
    except Exception as error:
        raise_if_host(error, where=episode_id)
        reason = error.line() if isinstance(error, UserError) else unforeseen(error)
    return Quarantined(printable(episode_id), printable(reword(reason))[:_LONGEST_REASON])


def opened(what: str, where: Path, error: Exception) -> ReportedError:
    """The error for unreadable metadata of a whole source.

    Args:
        what: expected content ("a LeRobot dataset").
        where: the file or folder.
        error: the caught exception.

    Raises:
        HostError: `error` is a failure of the machine.
    """
    raise_if_host(error, where=str(where))
    if isinstance(error, ReportedError):
        return error
    return UserError(printable(f"cannot be read as {what} ({first_line(error)[:200]})"), where=str(where))


def unforeseen(error: Exception) -> str:
    """One line for an unexpected exception: its type, its message and the line of code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unforeseen {type(error).__name__}{place}: {first_line(error)}"
