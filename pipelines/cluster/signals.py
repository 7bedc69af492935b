"""Ctrl-C and SIGTERM, as a command needs them: a clean end with its own exit code, at any moment.

    while modules are imported  the process ends at once: there is nothing to tidy up
    while Ray starts or stops   noted, and raised when that is done; asked twice, raised at once
    while a job loads           KeyboardInterrupt: blocks are left, Ray is stopped
    while a job's loop runs     noted: the loop leaves a checkpoint (`roboalign_ray.pipelines.align.job.interruptions`)

Exit codes are the shell's: 130 after Ctrl-C, 143 after SIGTERM. Only the main thread is told of signals; elsewhere
nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)
_QUICK_S = 1.0  # for processes to end by themselves, before they are asked to
_GONE_S = 3.0  # before they are killed


_last: list[int] = []  # the signal that this command was last asked to end by


def asked_to_end(number: int, _frame: Any = None) -> None:
    """A handler for both signals.

    Raises:
        KeyboardInterrupt: always, after SIGTERM too: what ends cleanly at Ctrl-C then ends so as well.
    """
    _last[:] = [number]
    raise KeyboardInterrupt


def end_at_once_until_main() -> None:
    """Where this process is the command: both signals end it without a traceback until its `main` says otherwise."""
    is_command = sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0] if sys.argv else "") == "roboalign"
    if is_command and threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, lambda number, _frame: os._exit(128 + number))


def forget_signals() -> None:
    """Call when a command begins: a signal that ended another command in this process does not count for it."""
    _last.clear()


def exit_code() -> int:
    """What a command returns that a `KeyboardInterrupt` has ended."""
    return 128 + (_last[0] if _last else signal.SIGINT)


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Both signals go to a handler for the block; what was set before is set again afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        _set(before)


@contextmanager
def deferred() -> Iterator[None]:
    """Both signals wait until the block is done, which must not be left half-way; the second one does not.

    Raises:
        KeyboardInterrupt: one came.
    """
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            asked_to_end(number, frame)

    with handled(note):
        yield
    if asked:
        asked_to_end(asked[0])


@contextmanager
def ending() -> Iterator[None]:
    """Both signals leave the block as exceptions, unless somebody handles them already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    free = (signal.SIG_DFL, signal.default_int_handler, None)
    for number, handler in before.items():
        if handler in free:
            signal.signal(number, asked_to_end)
    try:
        yield
    finally:
        _set(before)


class StartedProcesses:
    """Which processes this one starts from now on, and all that these start in turn."""

    def __init__(self) -> None:
        import psutil

        self._me = psutil.Process()
        self._before = set(self._me.children())

    def end(self, stop: Callable[[], None]) -> None:
        """Stop them the usual way; those that are then left, such as Ray's agents for a minute, are ended.

        Args:
            stop: the usual way.
        """
        import psutil

        started = []
        with suppress(psutil.Error):
            for child in set(self._me.children()) - self._before:
                started += [*child.children(recursive=True), child]
        try:
            stop()
        finally:
            _, left = psutil.wait_procs(started, timeout=_QUICK_S)
            for act in ("terminate", "kill"):
                for process in left:
                    with suppress(psutil.Error):
                        getattr(process, act)()
                _, left = psutil.wait_procs(left, timeout=_GONE_S)


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
