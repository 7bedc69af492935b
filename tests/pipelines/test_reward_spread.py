"""How much rewards differ within groups: the figures of a row, and the command on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_denoiser import tiny_network, tiny_sizes
from tiny_job import SIZE, make_tiny_job

from roboalign_ray.config import JobConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.evaluate.reward_spread import spread_row
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.diffusion.files import save_denoiser


def test_a_row_has_the_mean_over_groups_of_each_ones_deviation() -> None:
    groups = [
        [Scored(1.0, {"a": 2.0, "b": 1.0}), Scored(3.0, {"a": 2.0, "b": -3.0}), Failed("lost")],
        [Scored(-5.0, {"a": 1.0}), Scored(-5.0, {"a": 3.0})],
        [Scored(100.0, {"a": 9.0}), Failed("lost")],
    ]
    row = spread_row("plain", 4, groups)  # type: ignore[arg-type]
    assert (row.way, row.frames, row.groups, row.failed) == ("plain", 4, 2, 2)
    assert row.reward == pytest.approx((2 - 5) / 2)
    assert row.best == pytest.approx((3 - 5) / 2)
    assert row.deviation == pytest.approx(2**0.5 / 2 / 2)
    assert row.components == {"a": pytest.approx(2**0.5 / 2 / 2)}
    assert row.enough
    with pytest.raises(UserError, match=r"plain: no group has two scores \(lost\)"):
        spread_row("plain", 4, [[Scored(1.0), Failed("lost")]])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """The tiny job with a denoiser in the place of its token model."""
    folder = tmp_path_factory.mktemp("job")
    reward = {"fidelity": {"weight": 1.0, "lpips_network": "random-alex"}}
    config = make_tiny_job(folder, reward=reward, rollout={"refresh": {"policy": "none"}})
    card = ActionCard.load(folder / "world_model")
    assert card is not None
    sizes = tiny_sizes(views=1, height=SIZE, width=SIZE)
    save_denoiser(folder / "denoiser", tiny_network(sizes), NoiseConfig(steps=2), card)
    return config.model_copy(update={"world_model_weights": str(folder / "denoiser")})


def profile_of(job: JobConfig, folder: Path) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")), encoding="utf-8")
    return str(path)


SMALL = ["--groups", "2", "--samples", "3", "--history", "2"]


def test_a_row_per_way_and_length_with_the_same_prompts_and_seeds(
    job: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = profile_of(job, tmp_path)
    vary = ["--vary", "rollout.diffusion.action_noise=0,3", "--frames", "1", "--frames", "3"]
    assert run(["spread", profile, *SMALL, *vary, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["way"], row["frames"]) for row in rows] == [
        (way, frames)
        for way in ("the job's settings", "diffusion.action_noise=0", "diffusion.action_noise=3")
        for frames in (1, 3)
    ]
    assert all(row["groups"] == 2 and row["failed"] == 0 for row in rows)
    assert rows[0]["deviation"] == rows[2]["deviation"]  # the same prompts and seeds
    assert rows[4]["deviation"] != rows[2]["deviation"]
    assert rows[0]["deviation"] != rows[1]["deviation"]
    assert np.isfinite([row["reward"] for row in rows]).all()


def test_the_gate_and_bad_input_are_one_line(
    job: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = profile_of(job, tmp_path)
    assert run(["spread", profile, *SMALL, "--frames", "1", "--require"]) == 2
    told = capsys.readouterr()
    assert "there is little to learn from" in told.out
    assert "less than 10%" in told.err
    for arguments, line in (
        (["--vary", "alignment.updates=3"], "varies no setting of rollouts"),
        (["--vary", "rollout.diffusion.action_nois=3"], "action_noise"),
        (["--history", "40"], "no episode of split 'train'"),
        (["--vary", "rollout.refresh.policy=sinks"], "no refresh policy 'sinks'"),
    ):
        assert run(["spread", profile, *SMALL, *arguments]) == 2
        err = capsys.readouterr().err
        assert line in err
        assert len(err.strip().splitlines()) == 1
