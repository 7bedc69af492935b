"""Spans of work as a Chrome trace: one JSON file that chrome://tracing and ui.perfetto.dev draw as lanes.

The file is a JSON array of events, one a line, appended to while the work goes on. The format lets the closing bracket
be missing, and events are written whole: what a killed process leaves still loads. Times are microseconds since the
epoch, so the events of a resumed run stand after those of the run that it goes on from.

Format: "Trace Event Format" of the Chromium project; used are complete ("X"), instant ("i") and metadata ("M") events.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from roboalign_ray.foundation.storage.files import whole_file

_FLUSH_S = 1.0  # what is younger may be lost with the process
_OPEN, _BETWEEN, _CLOSE = "[\n", ",\n", "\n]\n"


class TraceFile:
    """Writes one trace: lanes (`thread` of `process`, both numbers) with events that may come in any order.

    Args:
        path: of the file; one that is there is appended to.
        most: events that it may hold. A full file takes the name `previous(path)`, and another is begun.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole microseconds are added to whole microseconds: what follows without a gap does so in the file.
        self._epoch = round((time.time() - time.monotonic()) * 1e6)
        self._names: dict[tuple[int, int, str], dict[str, Any]] = {}
        self._waiting: list[str] = []
        self._flushed, self._broken = time.monotonic(), False
        self._events = _reopen(path)
        self._file = path.open("ab", buffering=0)

    def lane(self, process: int, thread: int, process_name: str, thread_name: str) -> None:
        """Name a lane; processes are drawn in the order of their numbers."""
        self._name(process, 0, "process_name", {"name": process_name})
        self._name(process, 0, "process_sort_index", {"sort_index": process})
        self._name(process, thread, "thread_name", {"name": thread_name})

    def span(
        self,
        name: str,
        lane: tuple[int, int],
        began: float,
        ended: float,
        *,
        kind: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """A complete event.

        Args:
            lane: process and thread.
            began, ended: on the clock `time.monotonic`, seconds.
            kind: a category that viewers can filter by.
            about: details, JSON types.
        """
        start = round(began * 1e6)
        times = {"ts": self._epoch + start, "dur": max(0, round(ended * 1e6) - start)}
        self._add({"name": name, "cat": kind, "ph": "X", **times, **_place(lane), "args": dict(about or {})})

    def instant(
        self,
        name: str,
        lane: tuple[int, int],
        at: float,
        *,
        kind: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Something that happened at one moment; arguments as of `span`."""
        when = {"s": "t", "ts": self._epoch + round(at * 1e6)}
        self._add({"name": name, "cat": kind, "ph": "i", **when, **_place(lane), "args": dict(about or {})})

    def flush(self, *, now: bool = True) -> None:
        """Write what waits; without `now`, only where it has waited for a second."""
        if not self._waiting or not (now or time.monotonic() - self._flushed >= _FLUSH_S):
            return
        before = _BETWEEN if self._file.tell() else _OPEN
        text = (before + _BETWEEN.join(self._waiting)).encode()
        self._waiting, self._flushed = [], time.monotonic()
        self._write(text)  # at once: whole events or none

    def close(self) -> None:
        """Everything to the file, and the bracket that ends it; a second call does nothing."""
        if self._file.closed:
            return
        self.flush()
        if self._file.tell():
            self._write(_CLOSE.encode())
        self._file.close()

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, text: bytes) -> None:
        """A trace is not worth the work that it tells of: where no more can be written, a warning says so."""
        if self._broken:
            return
        try:
            self._file.write(text)
        except OSError as error:
            self._broken = True
            logging.getLogger(__name__).warning("%s: no more can be written (%s)", self.path, error)

    def _name(self, process: int, thread: int, what: str, value: dict[str, Any]) -> None:
        event = {"name": what, "ph": "M", "ts": 0, **_place((process, thread)), "args": value}
        if self._names.get((process, thread, what)) != event:
            self._names[process, thread, what] = event
            self._add(event)

    def _add(self, event: dict[str, Any]) -> None:
        # Names of lanes do not fill a file: there are few, and a new file begins with all of them.
        if self._events >= self.most and event["ph"] != "M":
            self._rotate()
        self._events += event["ph"] != "M"
        self._waiting.append(json.dumps(event))
        self.flush(now=False)

    def _rotate(self) -> None:
        self.close()
        os.replace(self.path, previous(self.path))
        self._file, self._events = self.path.open("ab", buffering=0), 0
        self._waiting = [json.dumps(event) for event in self._names.values()]


def previous(path: Path) -> Path:
    """Where a full trace is kept: trace.json becomes trace.1.json."""
    return path.with_suffix(f".1{path.suffix}")


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace, as a viewer reads them: the closing bracket and the last event's end may be missing.

    Raises:
        ValueError: something else is wrong with it.
    """
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines and lines[0] != _OPEN.strip():
        raise ValueError(f"{path} is not a trace")
    events = [line.removesuffix(",") for line in lines[1:] if line not in ("]", "")]
    if events:
        try:
            json.loads(events[-1])
        except (ValueError, RecursionError):
            events.pop()
    return events


def _reopen(path: Path) -> int:
    """Take the end off a trace that is there, so that it can be appended to; how many events it has."""
    if not path.exists():
        return 0
    try:
        events = _whole_lines(path)
    except ValueError:
        events = []
    with whole_file(path) as draft:
        draft.write_text(_OPEN + _BETWEEN.join(events) if events else "", encoding="utf-8")
    return sum('"ph": "M"' not in event for event in events)


def _place(lane: tuple[int, int]) -> dict[str, int]:
    return {"pid": lane[0], "tid": lane[1]}
