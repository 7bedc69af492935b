"""Handles Ctrl-C and SIGTERM in commands: at any time they end the process cleanly, with the right exit code.

    while modules are imported  the process ends at once: there is nothing to clean up
    while Ray starts or stops   recorded, and raised when that is done; a second signal is raised at once
    while a job loads           KeyboardInterrupt: blocks are left, Ray is stopped
    while a job's loop runs     recorded: the loop writes a checkpoint
                                (`roboalign_ray.pipelines.align.job.interruptions`)

Exit codes follow the shell: 130 after Ctrl-C, 143 after SIGTERM. Python delivers signals only to the main thread; in
other threads these functions do nothing.
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
_QUICK_S = 1.0  # limit for processes to end by themselves, before they are terminated
_GONE_S = 3.0  # limit for processes to end after SIGTERM, before they are killed


_last: list[int] = []  # the last of these signals that this command received


def interrupt(number: int, _frame: Any = None) -> None:
    """Signal handler for both signals.

    Raises:
        KeyboardInterrupt: always, also for SIGTERM, so that code which ends cleanly at Ctrl-C does so at SIGTERM.
    """
    _last[:] = [number]
    raise KeyboardInterrupt


def end_at_once_until_main() -> None:
    """If this process is the command, make both signals end it without a traceback until `main` sets its handler."""
    is_command = sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0] if sys.argv else "") == "roboalign"
    if is_command and threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, lambda number, _frame: os._exit(128 + number))


def forget_signals() -> None:
    """Forget signals of earlier commands in this process. Call it when a command begins."""
    _last.clear()


def exit_code() -> int:
    """The exit code of a command that was ended by a `KeyboardInterrupt`."""
    return 128 + (_last[0] if _last else signal.SIGINT)


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Use a handler for both signals within the block; the previous handlers are restored afterwards."""
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
    """Defer both signals until the block, which must not be interrupted, is done. A second signal is not deferred.

    Raises:
        KeyboardInterrupt: a signal arrived.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            interrupt(number, frame)

    with handled(note):
        yield
    if received:
        interrupt(received[0])


@contextmanager
def ending() -> Iterator[None]:
    """Raise both signals as exceptions inside the block, unless they already have handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    free = (signal.SIG_DFL, signal.default_int_handler, None)
    for number, handler in before.items():
        if handler in free:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        _set(before)


class StartedProcesses:
    """The processes that this process starts from now on, and all their descendants."""

    def __init__(self) -> None:
        import psutil

        self._me = psutil.Process()
        self._before = set(self._me.children())

    def end(self, stop: Callable[[], None]) -> None:
        """Call `stop`, then end the processes that are left; Ray's agents, for example, stay for a minute.

        Args:
            stop: the regular shutdown.
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
