"""Ray's own messages: what a job tells itself is not told twice, and a missing protection is still told."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout

import pytest
from ray._private import worker
from ray._private.authentication import authentication_token_setup as tokens

from roboalign_ray.pipelines.cluster.ray_messages import hide_worker_messages, quieten_driver

DIED = {"pid": "raylet", "is_err": False}


@pytest.fixture
def told() -> list[str]:
    class Kept(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.messages.append(record.getMessage())

    handler = Kept()
    before = tokens.logger.level, tokens.logger.disabled
    tokens.logger.addHandler(handler)
    tokens.logger.setLevel(logging.WARNING)  # a Ray that ran before may have set another
    tokens.logger.disabled = False
    yield handler.messages
    tokens.logger.removeHandler(handler)
    tokens.logger.setLevel(before[0])
    tokens.logger.disabled = before[1]


def test_the_notice_of_the_token_is_dropped_and_the_warning_of_none_stays(told: list[str]) -> None:
    quieten_driver()
    quieten_driver()
    tokens._warn_token_auth_enabled()
    assert told == []
    tokens._warn_token_auth_disabled()
    assert [("disabled" in message) for message in told] == [True]


def test_reports_of_lost_workers_stay_off_standard_output() -> None:
    def printed(message: str) -> str:  # Ray prints equal messages once
        stream = io.StringIO()
        with redirect_stdout(stream):
            worker.print_to_stdstream({**DIED, "lines": [message]}, ignore_prefix=False)
        return stream.getvalue()

    hide_worker_messages(True)
    try:
        assert printed("a worker died first") == ""
    finally:
        hide_worker_messages(False)
    assert "died" in printed("another worker died later")
