"""Progress in a log file is a few plain lines; in a terminal it is a bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from roboalign_ray.foundation.telemetry.progress import Progress, seconds


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _log() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=False, width=40), stream


def test_plain_lines_come_at_intervals_and_at_the_end() -> None:
    console, stream = _log()
    clock = Clock()
    with Progress(
        "align", total=40, unit="update", console=console, line_every_s=10, clock=clock
    ) as progress:
        for _ in range(40):
            clock.now += 1
            progress.advance(reward=0.25)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "align: 10/40 updates, 10 s, about 30 s left, reward 0.25",
        "align: 20/40 updates, 20 s, about 20 s left, reward 0.25",
        "align: 30/40 updates, 30 s, about 10 s left, reward 0.25",
        "align: 40/40 updates, 40 s, about 0 s left, reward 0.25",
        "align: 40/40 updates, 40 s, done, reward 0.25",
    ]


def test_steps_done_before_do_not_count_as_fast() -> None:
    console, stream = _log()
    clock = Clock()
    with Progress("train", 100, done=50, console=console, line_every_s=10, clock=clock) as progress:
        for _ in range(10):
            clock.now += 1
            progress.advance()
    assert stream.getvalue().splitlines()[0] == "train: 60/100 steps, 10 s, about 40 s left"


def test_an_error_is_told_as_stopped_and_passes_through() -> None:
    console, stream = _log()
    with pytest.raises(RuntimeError), Progress("train", total=3, console=console):
        raise RuntimeError
    assert "0/3 steps" in stream.getvalue()
    assert "stopped" in stream.getvalue()


def test_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with Progress("train", total=2, console=console) as progress:
        progress.advance(2, loss=1.5)
    assert "2/2" in stream.getvalue()
    assert "loss 1.5" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(8.2, "8 s"), (200, "3 min 20 s"), (120, "2 min"), (7500, "2 h 5 min")]
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text
