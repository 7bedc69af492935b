"""Finds the cause of a worker's death in Ray's error, and turns known causes into one-line errors.

An exception in an actor's constructor reaches the driver only as text: a headline from Ray, tracebacks, and the
exception at the end.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from roboalign_ray.foundation.failures import ReportedError, UserError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OWN = re.compile(r"(roboalign_ray(?:\.\w+)+)\.(\w+): (.+)")
_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_NAMED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Refused|Lost|Expired)(?:: |$)")
_EXTRAS = {
    "vllm": "teacher",
    "peft": "teacher",
    "metaworld": "simulation",
    "mujoco": "simulation",
    "wandb": "tracking",
}


def death_reason(error: BaseException) -> str:
    """The cause of an actor's death in one line: its constructor's exception, or else the first line of Ray's message.

    Args:
        error: a `RayActorError`.
    """
    lines = [line.rstrip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not getattr(error, "actor_init_failed", False):
        return lines[0]
    # A message may have several lines; its first line names the exception's class.
    return next((line for line in reversed(lines) if _NAMED.match(line)), lines[-1])


def reported_reason(reason: str, what: str) -> ReportedError | None:
    """The one-line error that a constructor raised; None for a bug or a lost process.

    Args:
        reason: the text from `death_reason`.
        what: name of the worker, for messages.
    """
    if match := _OWN.match(reason):
        module, name, line = match.groups()
        kind: Any = _class(module, name)
        if isinstance(kind, type) and issubclass(kind, ReportedError):
            return kind(line)
    if match := _MODULE.match(reason):
        module = match[1].partition(".")[0]
        name = f"roboalign-ray[{_EXTRAS[module]}]" if module in _EXTRAS else module
        return UserError(
            f"the worker cannot start: module '{match[1]}' is not installed",
            where=what,
            remedy=f"run on every node: pip install '{name}'",
        )
    return None


def _class(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
