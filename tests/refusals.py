"""Commands that must be refused: exit code 2, one line on stderr, every file as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from roboalign_ray.pipelines.cli.main import run


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content; folders as empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def refused(words: list[str], folder: Path, capture: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with code 2 and leave the folder as it was; its one line on stderr."""
    before = tree(folder)
    capture.readouterr()
    code = run(words)
    out, line = capture.readouterr()
    assert code == 2, line
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert "Traceback" not in out + line
    assert tree(folder) == before
    return line
