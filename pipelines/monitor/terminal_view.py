"""The terminal view of a running alignment job.

`render` renders a state; it is a pure function, so that tests can check it. `LiveView` shows the newest state on the
screen and redraws it; `PlainView` writes a line from time to time if the output is not a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from roboalign_ray.foundation.telemetry.progress import Progress, seconds
from roboalign_ray.pipelines.monitor.utilisation import RoleState

_WIDE = 96  # from this width on, panels are side by side; below it they are stacked without borders
_BAR = 12
_TICKS = "▁▂▃▄▅▆▇█"
_LEARNING = {
    "reference_kl": "KL to the reference",
    "clip_fraction": "clip fraction",
    "entropy": "entropy",
    "grad_norm": "gradient norm",
    "importance_mean": "importance weight",
}
_JUDGE = {
    "judge/version": "student version",
    "judge/gap": "student over teacher",
    "judge/rank": "rank agreement",
}
_MORE = "…"  # the row for curves that do not fit
_LEAST_REWARDS = 2  # rows that are shown at any terminal height
_NOT_COMPONENTS = ("reward_mean", "reward_std", "reward_group_std")


@dataclass(frozen=True)
class ViewState:
    """The state of a job at one time.

    Attributes:
        title: name of the job.
        version, updates: updates done, and total number of updates.
        recorded: updates whose scalars are in `curves`: all done updates, or one fewer while the last is evaluated.
        elapsed_s, left_s: time since this process began, and time until the end, None if not yet known.
        doing: the work that everything else waits for ("evaluation", "checkpoint"); empty otherwise.
        roles: in the order of the work.
        running, scorer_queue, ready, batch: groups started and not finished; of those, groups waiting for a score or
            being scored; finished groups waiting for their update; groups per update.
        bound: eta, the bound on staleness.
        staleness: number of trained segments by age in versions.
        curves: recent values of every scalar, oldest first.
        failures: number of failed attempts by kind.
        alarms: scalars of alarms that are not 0.
    """

    title: str
    version: int
    updates: int
    elapsed_s: float
    left_s: float | None
    recorded: int = 0
    doing: str = ""
    roles: tuple[RoleState, ...] = ()
    running: int = 0
    scorer_queue: int = 0
    ready: int = 0
    batch: int = 1
    bound: int = 0
    staleness: Mapping[int, int] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    alarms: Mapping[str, float] = field(default_factory=dict)


class View(Protocol):
    """A view that shows states."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, state: ViewState) -> None:
        """Show the current state."""
        ...


class LiveView:
    """Shows the newest state on a terminal; the last state stays on the screen.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=2)

    def show(self, state: ViewState) -> None:
        """Store the state, to be drawn at the next refresh."""
        # The cursor needs a line as well.
        self._live.update(render(state, self._console.width, self._console.height - 1))

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainView:
    """Writes a line from time to time.

    Args:
        console: console for the lines.
        first, last: number of updates done at the beginning, and in total.
    """

    def __init__(self, console: Console, first: int, last: int) -> None:
        self._done = first
        self._progress = Progress("align", total=last, done=first, unit="update", console=console)

    def show(self, state: ViewState) -> None:
        """Count updates, and write a line when it is time for one."""
        if state.recorded > self._done:
            shown = {"reward": "reward_mean", "held out": "held_out/reward_mean", "kl": "reference_kl"}
            figures = {label: state.curves[name][-1] for label, name in shown.items() if name in state.curves}
            self._progress.advance(state.recorded - self._done, **figures)
            self._done = state.recorded

    def __enter__(self) -> PlainView:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)


def render(state: ViewState, width: int = 100, height: int | None = None) -> RenderableType:
    """Render a state.

    Args:
        width: number of columns.
        height: number of lines; only as many reward curves are shown as fit. None shows all.
    """
    header, warnings = _header(state, width), _warnings(state)
    roles, groups = _roles(state), _groups(state)
    learning = _curves(state, _LEARNING)
    rewards = _reward_names(state)
    if width < _WIDE:
        others = sum(table.row_count for table in (roles, groups, learning)) + 1  # the roles' titles
        shown = _fitting(rewards, height, len(header) + len(warnings) + others)
        return Group(*header, *warnings, roles, groups, _curves(state, shown), learning)
    borders = 4
    others = max(roles.row_count + 1, groups.row_count) + borders
    shown = _fitting(rewards, height, len(header) + len(warnings) + others)
    return Group(
        *header,
        *warnings,
        _pair(_panel("roles", roles), _panel("groups", groups)),
        _pair(_panel("rewards", _curves(state, shown)), _panel("learning", learning)),
    )


def spark(values: Sequence[float]) -> str:
    """A small curve with one character per value. Values that are not finite are gaps; a flat curve is low."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return " " * len(values)
    low, span, top = min(known), max(known) - min(known), len(_TICKS) - 1
    return "".join(
        _TICKS[round((value - low) / span * top) if span else 0] if math.isfinite(value) else " "
        for value in values
    )


def _header(state: ViewState, width: int) -> list[RenderableType]:
    """The header in one line, or in two if it is too long."""
    times = [seconds(state.elapsed_s)]
    if state.left_s is not None and state.version < state.updates:
        times.append(f"about {seconds(state.left_s)} left")
    progress = Text(f"{state.version}/{state.updates} updates, {', '.join(times)}")
    first, doing = Table.grid(padding=(0, 1)), Text(state.doing, "cyan")
    bar = ProgressBar(total=state.updates, completed=state.version, width=24)
    if width < _WIDE:
        first.add_row(Text(f"align {state.title}", "bold"), bar, doing)
        return [first, progress]
    first.add_row(Text(f"align {state.title}", "bold"), bar, progress, doing)
    return [first]


def _warnings(state: ViewState) -> list[RenderableType]:
    """Alarms and failures, shown at the top so that a small terminal does not cut them off."""
    lines: list[RenderableType] = [
        Text(f"alarm: {name} = {value:.4g}", "bold red") for name, value in sorted(state.alarms.items())
    ]
    if state.failures:
        failures = ", ".join(f"{count} {kind}" for kind, count in sorted(state.failures.items()))
        lines.append(Text(f"failed attempts: {failures}", "yellow", no_wrap=True, overflow="ellipsis"))
    return lines


def _roles(state: ViewState) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("", "up", "busy", "groups/s", "tokens/s", "lost"):
        table.add_column(title, justify="left" if title in ("", "busy") else "right", no_wrap=True)
    for role in state.roles:
        table.add_row(
            role.name,
            Text(f"{role.up}/{role.workers}", "" if role.up == role.workers else "yellow"),
            f"{_bar(role.busy)} {role.busy:4.0%}",
            f"{role.groups:.3g}" if role.groups else "-",
            f"{role.tokens:,.0f}" if role.tokens else "-",
            Text(str(role.lost), "red" if role.lost else "dim"),
        )
    return table


def _groups(state: ViewState) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    most = max(state.running, state.scorer_queue, state.ready, state.batch)
    for label, count in (
        ("running", state.running),
        ("at scorers", state.scorer_queue),
        ("ready", state.ready),
    ):
        note = f" of {state.batch}" if label == "ready" else ""
        table.add_row(label, str(count), _bar(count / most) + note)
    total = sum(state.staleness.values())
    for age, count in sorted(state.staleness.items()):
        label = f"age {age}" + (f" of {state.bound}" if age == state.bound else "")
        table.add_row(label, f"{count / total:.0%}", Text(_bar(count / total), "magenta"))
    if not total:
        table.add_row(
            f"age 0 to {state.bound}" if state.bound else "age 0", "", Text("nothing trained yet", "dim")
        )
    return table


def _reward_names(state: ViewState) -> dict[str, str]:
    """Names and labels of the existing curves, the most important first."""
    parts = [n for n in state.curves if n.startswith("reward_") and n not in _NOT_COMPONENTS]
    names = {
        "reward_mean": "reward",
        "held_out/reward_mean": "held out",
        "reward_group_std": "spread in a group",
    }
    names |= _JUDGE | {name: name.removeprefix("reward_") for name in sorted(parts)}
    return {name: label for name, label in names.items() if state.curves.get(name)}


def _fitting(names: Mapping[str, str], height: int | None, others: int) -> dict[str, str]:
    """As many names as fit besides `others` lines; if some do not fit, the last line gives their number."""
    room = len(names) if height is None else max(_LEAST_REWARDS, height - others)
    if len(names) <= room:
        return dict(names)
    kept = dict(list(names.items())[: max(1, room - 1)])
    return {**kept, _MORE: f"… {len(names) - len(kept)} more"}


def _curves(state: ViewState, names: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="crop")
    for name, label in names.items():
        if values := state.curves.get(name):
            table.add_row(label, f"{values[-1]:.4g}", Text(spark(values), "green"))
        elif name == _MORE:
            table.add_row(Text(label, "dim"))
    if not table.row_count:
        table.add_row(Text("nothing yet", "dim"))
    return table


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim")


def _pair(left: Panel, right: Panel) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=3)
    grid.add_column(ratio=2)
    grid.add_row(left, right)
    return grid


def _bar(share: float) -> str:
    """A bar of a share between 0 and 1."""
    filled = round(min(1.0, max(0.0, share)) * _BAR)
    return "█" * filled + "░" * (_BAR - filled)
