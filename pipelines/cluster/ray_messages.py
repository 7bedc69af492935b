"""Controls which of Ray's messages reach the terminal of a job.

A job prints one line for every loss and every recovery. Ray would print the same events again, some as tracebacks,
and some on standard output, where `--json` must print only JSON.
"""

from __future__ import annotations

import logging
import os

_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
_TOKEN_IS_USED = "Token authentication is enabled"


class _TokenIsUsed(logging.Filter):
    """Drops the notice that Ray's token authentication is on; the warning that it is off is kept."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_TOKEN_IS_USED)


def quieten_driver() -> None:
    """Hide the notice of token authentication and tracebacks of unread results. Call it before Ray starts."""
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    logger = logging.getLogger(_TOKEN_LOGGER)
    if not any(isinstance(entry, _TokenIsUsed) for entry in logger.filters):
        logger.addFilter(_TokenIsUsed())


def hide_worker_messages(hidden: bool) -> None:
    """Hide or show reports of dead workers and nodes on the terminal, which `log_to_driver` does not control.

    Ray has no setting for this. Its debugger uses the same internal switch.
    """
    from ray._private import worker

    worker._worker_logs_enabled = not hidden
