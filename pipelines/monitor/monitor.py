"""Monitoring of an alignment job without influence on it: live view, trace, metrics pages.

calls of workers ─► meters ─┐                      ┌─► live view, or lines
                   trace    ├─► state, every turn ─┘
scalars of updates ─► history ─► Ray's metrics page, Weights & Biases
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.telemetry.chrome_trace import TraceFile
from roboalign_ray.foundation.telemetry.metrics import read_rows
from roboalign_ray.foundation.telemetry.tracking import WandbRun
from roboalign_ray.pipelines.align.loop import AlignmentLoop
from roboalign_ray.pipelines.cluster.worker_pool import Observer
from roboalign_ray.pipelines.cluster.workforce import Workforce
from roboalign_ray.pipelines.monitor.call_trace import RunTrace
from roboalign_ray.pipelines.monitor.terminal_view import LiveView, PlainView, View, ViewState
from roboalign_ray.pipelines.monitor.utilisation import Meters

TRACE = "trace.json"
_SHOW_S = 0.4  # interval between states; the screen is drawn twice per second
_NO_CURVES = ("step", "time")


class Sink(Protocol):
    """A destination for scalars, besides the run's own files."""

    def scalars(self, version: int, values: Mapping[str, float]) -> None:
        """Write the scalars of one update."""
        ...

    def close(self) -> None:
        """Close it; no more scalars follow."""
        ...


class History:
    """The last values of every curve, and the number of failed attempts.

    Args:
        points: number of values kept per curve.
    """

    def __init__(self, points: int) -> None:
        self._points = points
        self.curves: dict[str, deque[float]] = {}
        self.failures: Counter[str] = Counter()
        self.alarms: dict[str, float] = {}

    def learn(self, values: Mapping[str, float | None]) -> None:
        """Add one update's scalars. In scalars read from a file, a value that is not finite is None."""
        for name, value in values.items():
            if name not in _NO_CURVES:
                curve = self.curves.setdefault(name, deque(maxlen=self._points))
                curve.append(float("nan") if value is None else float(value))
        for name, value in values.items():
            if name.startswith("failures/") and value:
                self.failures[name.removeprefix("failures/")] += int(value)
        alarms = {name: float(value or 0.0) for name, value in values.items() if "alarm" in name}
        self.alarms = {name: value for name, value in (self.alarms | alarms).items() if value}


class Watch(Observer):
    """Monitors one job during the block.

    Args:
        config: the job.
        logs: folder of the run's logs; the trace is written into it.
        curves: folder of the run's curves, from which a resumed run's history is read.
        workforce: the workforce whose calls are monitored.
        quiet: show nothing on the terminal.

    Raises:
        UserError: Weights & Biases is configured but not available.
    """

    def __init__(
        self, config: JobConfig, logs: Path, curves: Path, workforce: Workforce, *, quiet: bool = False
    ) -> None:
        self._config, self._logs, self._curves, self._workforce = config, logs, curves, workforce
        self._console, self._began = Console(stderr=True, quiet=quiet), time.monotonic()
        settings = config.telemetry
        self._history = History(settings.points)
        self._meters = Meters(settings.window_s, self._began, config.alignment.prompts_per_update)
        self._trace: RunTrace | None = None
        self._sinks: list[Sink] = []
        self._loop: AlignmentLoop | None = None
        self._view: View | None = None
        self._first = self._recorded = 0
        self._begun_at, self._shown, self._doing = self._began, 0.0, ""
        self._stack = ExitStack()

    def __enter__(self) -> Watch:
        settings = self._config.telemetry
        with ExitStack() as stack:
            if settings.wandb is not None:
                name, tree = self._config.name, self._config.public()
                self._add(stack, WandbRun(settings.wandb, self._logs / "wandb", name, tree))
            if settings.prometheus:
                from roboalign_ray.pipelines.monitor.prometheus import RayMetrics

                self._add(stack, RayMetrics(self._config.name))
            if settings.trace_events:
                file = stack.enter_context(TraceFile(self._logs / TRACE, settings.trace_events))
                self._trace = RunTrace(file)
                self._workforce.observers.append(self._trace)
            self._workforce.observers += [self._meters, self]
            stack.callback(self._workforce.observers.clear)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def over(self, loop: AlignmentLoop) -> Iterator[None]:
        """Show a loop on the terminal, from its present state."""
        self._history = History(self._config.telemetry.points)
        for row in read_rows(self._curves):
            self._history.learn(row)
        self._first = self._recorded = loop.version
        self._begun_at, self._loop = time.monotonic(), loop
        with self._make_view() or nullcontext() as self._view:
            try:
                yield
            finally:
                self._show()
                self._view = self._loop = None

    @contextmanager
    def span(self, name: str, **about: Any) -> Iterator[None]:
        """Record work that updates wait for: an evaluation or a checkpoint."""
        before, self._doing = self._doing, name
        self._show()
        with self._trace.span(name, **about) if self._trace else nullcontext():
            try:
                yield
            finally:
                self._doing = before

    def scalars(self, version: int, values: Mapping[str, float]) -> None:
        """Record the complete scalars of an update."""
        self._history.learn(values)
        self._recorded = version
        for sink in self._sinks:
            sink.scalars(version, values)
        self._show()

    def note(self, message: str) -> None:
        """Print a permanent line on the terminal, above the live view."""
        self._console.print(message, style="yellow", markup=False, highlight=False)

    def turned(self) -> None:
        """Show a new state if the last one is old enough."""
        if time.monotonic() - self._shown >= _SHOW_S:
            self._show()

    def state(self, loop: AlignmentLoop) -> ViewState:
        """The present state for the view."""
        now, ledger, history = time.monotonic(), loop.groups.ledger, self._history
        elapsed, done = now - self._begun_at, loop.version - self._first
        left = elapsed / done * (loop.groups.last - loop.version) if done else None
        return ViewState(
            title=self._config.name,
            version=loop.version,
            recorded=self._recorded,
            updates=loop.groups.last,
            elapsed_s=elapsed,
            left_s=left,
            doing=self._doing,
            roles=tuple(self._meters.state(pool, now) for pool in self._workforce.pools),
            running=ledger.running,
            scorer_queue=loop.scorer_queue(),
            ready=ledger.ready,
            batch=ledger.batch,
            bound=ledger.staleness,
            staleness=dict(ledger.staleness_of_segments),
            curves={name: tuple(values) for name, values in history.curves.items()},
            failures=dict(history.failures),
            alarms=dict(history.alarms),
        )

    def _show(self) -> None:
        if self._view is not None and self._loop is not None:
            self._shown = time.monotonic()
            self._view.show(self.state(self._loop))

    def _make_view(self) -> LiveView | PlainView | None:
        if self._console.quiet:
            return None
        if self._console.is_terminal:
            return LiveView(self._console)
        assert self._loop is not None
        return PlainView(self._console, self._first, self._loop.groups.last)

    def _add(self, stack: ExitStack, sink: Sink) -> None:
        self._sinks.append(sink)
        stack.callback(sink.close)
