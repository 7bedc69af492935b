"""A window stream in a process of its own.

Ray Data's scheduler is a busy Python thread. In the trainer's process it would contend for the interpreter lock with
every small tensor operation (measured: a training step of 0.3 s took 1.3 s), so it lives in an actor, and the trainer
holds a few batches ahead. Each batch comes with the position after it: what is saved is what was consumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipelines.streaming import Batch, WindowStream

_AHEAD = 3  # batches requested before they are needed
_DEADLINE_S = 600.0


class _Feed:
    """The actor: hands out batches of a stream, one a call."""

    def __init__(self, arguments: dict[str, Any], position: Mapping[str, Any] | None) -> None:
        self._stream = WindowStream(**arguments)
        if position is not None:
            self._stream.load_state_dict(position)
        self._batches = iter(self._stream)

    def next(self) -> tuple[Batch, dict[str, Any]]:
        """The next batch and the position after it."""
        return next(self._batches), self._stream.state_dict()


class WindowFeed:
    """`WindowStream` from a distance: the same batches, the same positions.

    Args:
        arguments: of `WindowStream`, by name.

    Raises:
        UserError: no such store, or no episode that is long enough.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._position = WindowStream(**arguments).state_dict()

    def __iter__(self) -> Iterator[Batch]:
        """Endless batches; the position moves on when a batch is handed out."""
        import ray

        from pipelines.runtime import wait

        actor: Any = ray.remote(num_cpus=0)(_Feed).remote(self._arguments, self._position)
        pending = deque(actor.next.remote() for _ in range(_AHEAD))
        try:
            while True:
                [(batch, position)] = wait([pending.popleft()], _DEADLINE_S, "windows")
                pending.append(actor.next.remote())
                self._position = position
                yield {name: _writable(value) for name, value in batch.items()}
        finally:
            ray.kill(actor)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return dict(self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            UserError: the state belongs to a stream of another order.
        """
        check = WindowStream(**self._arguments)
        check.load_state_dict(state)
        self._position = check.state_dict()


def _writable(value: Any) -> Any:
    """Arrays out of Ray's shared store are read only, which torch warns of."""
    return value.copy() if isinstance(value, np.ndarray) else value
