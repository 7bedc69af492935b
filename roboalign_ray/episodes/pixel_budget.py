"""Limits the decoded pixels that one process holds at once, over all decoding threads.

A video's size is known before it is decoded. A decoder first leases that many pixels; if other decoders hold them, it
waits, up to a deadline. One pixel is three bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from roboalign_ray.foundation.failures import UserError

MOST_IN_FLIGHT = 2**30  # pixels; 3 GB of frames
WAIT_S = 60.0


class PixelsBusyError(UserError):
    """The requested pixels were not free before the deadline. The same request may succeed later."""


class PixelBudget:
    """A number of pixels that threads share.

    Args:
        pixels: total, at least 1.
    """

    def __init__(self, pixels: int) -> None:
        if pixels < 1:
            raise ValueError(f"a budget of {pixels} pixels")
        self.pixels = pixels
        self._held = 0
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Number of pixels that are leased now."""
        return self._held

    @contextmanager
    def lease(self, pixels: int, *, wait_s: float = WAIT_S) -> Iterator[None]:
        """Lease pixels until the block ends.

        Args:
            pixels: number of pixels.
            wait_s: maximum wait in seconds; 0 does not wait.

        Raises:
            PixelsBusyError: other threads still hold them after `wait_s`, or the request exceeds the total.
        """
        self._take(pixels, wait_s)
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()

    def _take(self, pixels: int, wait_s: float) -> None:
        if pixels > self.pixels:
            raise PixelsBusyError(
                f"needs {pixels} pixels of memory, this process may hold {self.pixels}",
                where="video",
                remedy="decode fewer or smaller frames",
            )
        end = monotonic() + wait_s
        with self._changed:
            while self._held + pixels > self.pixels:
                left = end - monotonic()
                if left <= 0 or not self._changed.wait(left):
                    if self._held + pixels <= self.pixels:
                        break
                    raise PixelsBusyError(
                        f"other videos hold {self._held} of {self.pixels} pixels, {pixels} more are needed",
                        where="video",
                        remedy="try again later",
                    )
            self._held += pixels


PIXELS = PixelBudget(MOST_IN_FLIGHT)  # the budget of this process
