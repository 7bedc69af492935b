"""Which of Ray's own messages reach the terminal of a job.

A job tells every loss and every recovery in a line of its own. Ray would print the same events again, some as
tracebacks, and some on standard output, where `--json` promises nothing but JSON.
"""

from __future__ import annotations

import logging
import os

_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
_TOKEN_IS_USED = "Token authentication is enabled"


class _TokenIsUsed(logging.Filter):
    """Drops the notice that Ray's default protection is on; the warning that it is off stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_TOKEN_IS_USED)


def quieten_driver() -> None:
    """Before Ray starts: no notice of its default protection, no traceback for a result that was never asked for."""
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    logger = logging.getLogger(_TOKEN_LOGGER)
    if not any(isinstance(entry, _TokenIsUsed) for entry in logger.filters):
        logger.addFilter(_TokenIsUsed())


def hide_worker_messages(hidden: bool) -> None:
    """Whether reports of workers and nodes that died stay off the terminal; `log_to_driver` leaves those on.

    Ray has no setting for this. Its debugger uses the same switch.
    """
    from ray._private import worker

    worker._worker_logs_enabled = not hidden
