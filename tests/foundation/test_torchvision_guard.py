"""The torchvision guard in processes that others start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roboalign_ray.foundation.torchvision_guard import guard_children

REPOSITORY = Path(__file__).resolve().parents[2]
LOOK = "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('_TorchvisionFinder'))"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder on the path with a `sitecustomize` of its own."""
    (tmp_path / "sitecustomize.py").write_text("print('its own')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    return tmp_path


def child(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(torch.version.cuda is not None, reason="nothing to guard beside a CUDA build of torch")
def test_a_child_is_guarded_and_keeps_its_own_start(environment: Path) -> None:
    assert child(LOOK) == ["its own", "0"]
    guard_children()
    guard_children()
    assert child(LOOK) == ["its own", "1"]
    assert os.environ["PYTHONPATH"].split(os.pathsep)[1:] == [str(environment), str(REPOSITORY)]


def test_beside_a_gpu_build_nothing_changes(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ["PYTHONPATH"]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    guard_children()
    assert os.environ["PYTHONPATH"] == before
