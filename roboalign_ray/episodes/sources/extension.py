"""Episode sources by name: built-in formats, and adapters for classes from outside this package.

class Mine:                                  named by entry point, or as my_pkg.sources:Mine
    name = "mine"
    def __init__(self, root: Path): ...
    def episodes(self): ...                  yields `Episode` and `Quarantined`, in the same order at every call
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from roboalign_ray.episodes.action_kinds import ActionFindings, names_of
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import EpisodeSource, Quarantined
from roboalign_ray.foundation.failures import ReportedError, UserError, first_line, raise_if_host
from roboalign_ray.plugins import Registry, lacks

SOURCES: Registry[type[EpisodeSource]] = Registry(
    "episode_sources",
    "episode source",
    {
        "lerobot": "roboalign_ray.episodes.sources.lerobot:LeRobotSource",
        "rlds": "roboalign_ray.episodes.sources.rlds:RldsSource",
        "droid": "roboalign_ray.episodes.sources.droid:DroidSource",
    },
    lacks("episodes"),
)


class ExtensionSource:
    """Implements `EpisodeSource` with a class from outside this package.

    Args:
        format: name of the class, in `SOURCES` or module:attribute.
        root: argument of the class.
        views: views to keep; if empty, all are kept.

    Attributes:
        name: the class's `name`, or `format`.

    Raises:
        UserError: there is no such class, or it raises an error for `root`.
    """

    def __init__(self, format: str, root: Path, views: Sequence[str] = ()) -> None:
        made = SOURCES.load(format, "--format")
        self._format, self._root, self._views = format, root, tuple(views)
        try:
            self._source = made(root)  # type: ignore[call-arg]
        except Exception as error:
            raise self._user_error(error) from error
        self.name = str(getattr(self._source, "name", format))

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """The class's episodes with the wanted views. Episodes whose actions differ from the first one's are
        quarantined.

        Raises:
            ReportedError: the class raised an error, or yielded another type.
        """
        first: Episode | None = None
        for item in self._items():
            if isinstance(item, Quarantined):
                yield item
                continue
            first = first or item
            yield self._kept(item, first)

    @cached_property
    def action_findings(self) -> ActionFindings:
        """Findings from the first episode's actions; empty if there is no episode."""
        for item in self._items():
            if isinstance(item, Episode):
                kinds = item.action_kinds
                names = names_of(item.action_names, len(kinds))
                return ActionFindings(names, kinds, (f"declared by {self._format}",) * len(kinds))
        return ActionFindings((), (), ())

    def _items(self) -> Iterator[Episode | Quarantined]:
        try:
            for item in self._source.episodes():
                if not isinstance(item, Episode | Quarantined):
                    raise UserError(
                        f"gave a {type(item).__name__}, not an Episode or Quarantined", where=self._format
                    )
                yield item
        except Exception as error:
            raise self._user_error(error) from error

    def _kept(self, item: Episode, first: Episode) -> Episode | Quarantined:
        if (item.action_names, item.action_kinds) != (first.action_names, first.action_kinds):
            return Quarantined(item.episode_id, f"its actions are not those of {first.episode_id}")
        if missing := [view for view in self._views if view not in item.frames]:
            known = ", ".join(item.frames)
            return Quarantined(item.episode_id, f"has no view {', '.join(missing)} (views: {known})")
        if not self._views:
            return item
        return replace(item, frames={view: item.frames[view] for view in self._views})

    def _user_error(self, error: Exception) -> ReportedError:
        """The error as a `ReportedError` with one line.

        Raises:
            HostError: the machine caused it.
        """
        raise_if_host(error, where=str(self._root))
        if isinstance(error, ReportedError):
            return error
        reason = f"{type(error).__name__}: {first_line(error)}"
        return UserError(f"cannot be read by {self._format} ({reason[:300]})", where=str(self._root))
