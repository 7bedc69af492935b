"""Environments of toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_job import make_tiny_job


@pytest.fixture(scope="session")
def token_job(tmp_path_factory) -> Path:
    """A folder with a store, a tokenizer and a token world model of toy size."""
    folder = tmp_path_factory.mktemp("planning-job")
    make_tiny_job(folder)
    return folder
