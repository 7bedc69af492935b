"""Fixtures shared by every room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Tiny tensors gain nothing from threads, and lose much where tests run side by side.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real robot episodes; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ROBOALIGN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real episodes at {folder}; set ROBOALIGN_REAL_DATA")
    return folder
