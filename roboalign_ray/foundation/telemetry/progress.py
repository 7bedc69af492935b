"""Progress that a person can read: a bar in a terminal, a plain line now and then in a log file.

with Progress("align", total=150, unit="update") as progress:
    for update in range(150):
        ...
        progress.advance(reward=reward, kl=kl)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 15.0


class Progress:
    """Counts one job's steps and shows them.

    Args:
        title: what is going on.
        total: steps in all; None where unknown.
        unit: what a step is called.
        done: steps that were done before: a resumed job's; they count as done, not as fast.
        console: where to; None takes standard error, so that standard output stays clean for results.
        quiet: show nothing on standard error.
        line_every_s: seconds between lines where the console is no terminal.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        unit: str = "step",
        done: int = 0,
        console: Console | None = None,
        quiet: bool = False,
        line_every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._before = done
        self.console = console or Console(stderr=True, quiet=quiet)
        self._every, self._clock = line_every_s, clock
        self._started = self._last_line = clock()
        self._figures: dict[str, float | str] = {}
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        self._started = self._last_line = self._clock()
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", style="dim", markup=False),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, figures="")
        return self

    def advance(self, steps: int = 1, **figures: float | str) -> None:
        """Count steps done; `figures` stand beside them until others replace them."""
        self.done += steps
        self._figures.update(figures)
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, figures=_join(self._figures))
        elif self._clock() - self._last_line >= self._every:
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._line(final="stopped" if error else "done")

    def _line(self, final: str = "") -> None:
        now = self._clock()
        self._last_line, elapsed = now, now - self._started
        count = f"{self.done}/{self.total}" if self.total else str(self.done)
        parts = [f"{self.title}: {count} {self.unit}s", seconds(elapsed)]
        if final:
            parts.append(final)
        elif self.total and self.done > self._before:
            each = elapsed / (self.done - self._before)
            parts.append(f"about {seconds(each * (self.total - self.done))} left")
        if self._figures:
            parts.append(_join(self._figures))
        self.console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)


def seconds(duration: float) -> str:
    """A duration for people: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _join(figures: dict[str, float | str]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
