"""The one interface behind which every source of episodes stands, and the boundary around each of its records."""

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
    """An episode that cannot be used. A value, not an exception: the rest of the source goes on.

    Attributes:
        episode_id: which episode, as the source would have named it.
        reason: one line, fit for a table.
    """

    episode_id: str
    reason: str


@runtime_checkable
class EpisodeSource(Protocol):
    """Anything that yields episodes: a simulator, a dataset on disk, a store.

    Attributes:
        name: first part of every episode id of this source.
    """

    name: str

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Every episode in a fixed order; those that cannot be used come as `Quarantined`.

        Raises:
            UserError: the source as a whole cannot be read (missing folder, missing package).
        """
        ...


def read_or_quarantine(
    episode_id: str, read: Callable[[], Episode], *, told: Callable[[str], str] = str
) -> Episode | Quarantined:
    """Read one record of a source. This is the one boundary between a damaged record and the rest of a conversion.

    Args:
        episode_id: the record's name.
        read: reads it.
        told: last change to the reason, such as shortening file names.

    Returns:
        The episode, or the reason why it cannot be used. An exception that no reader foresees becomes a reason too; it
        names the type and the line of code, because it may be a mistake in this program.

    Raises:
        HostError: the machine stopped the work (full disk, no memory, no permission): no fault of the record.
    """
    try:
        return read()
    except Exception as error:
        raise_if_host(error, where=episode_id)
        reason = error.line() if isinstance(error, UserError) else unforeseen(error)
    return Quarantined(printable(episode_id), printable(told(reason))[:_LONGEST_REASON])


def opened(what: str, where: Path, error: Exception) -> ReportedError:
    """The error to raise where the metadata of a whole source cannot be read.

    Args:
        what: what it should be ("a LeRobot dataset").
        where: the file or folder.
        error: what was caught.

    Raises:
        HostError: `error` is a failure of the machine.
    """
    raise_if_host(error, where=str(where))
    if isinstance(error, ReportedError):
        return error
    return UserError(printable(f"cannot be read as {what} ({first_line(error)[:200]})"), where=str(where))


def unforeseen(error: Exception) -> str:
    """One line for an exception that no reader foresees: its type, its words and the line of code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unforeseen {type(error).__name__}{place}: {first_line(error)}"
