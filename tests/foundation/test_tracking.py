"""Weights & Biases where it is installed, offline; a clear word where it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.telemetry.tracking import WandbRun, check_tracking

INSTALLED = importlib.util.find_spec("wandb") is not None


@pytest.mark.skipif(INSTALLED, reason="it is installed")
def test_asked_for_and_not_installed_is_told(tmp_path):
    check_tracking(None)
    with pytest.raises(UserError, match=r"telemetry\.wandb: .*not installed.*tracking"):
        check_tracking("project")
    with pytest.raises(UserError, match="not installed"):
        WandbRun("project", tmp_path / "logs", "run", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not INSTALLED, reason="Weights & Biases is not installed")
def test_scalars_are_kept_offline_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    identities = set()
    for version in (1, 2):
        run = WandbRun("project", tmp_path, "run", {"seed": 3})
        run.scalars(version, {"reward_mean": version / 4, "kl": float("nan")})
        assert run._run.summary["reward_mean"] == version / 4
        assert run._run.summary.get("kl") is None
        identities.add(run._run.id)
        run.close()
    assert len(identities) == 1
    kept = list(Path(tmp_path).rglob("*.wandb"))
    assert len(kept) == 2
    assert all(path.stat().st_size > 0 for path in kept)
