"""Alignment of a diffusion world model on Ray: the same job, the same guarantees, another world model and objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from straight_line import straight_line
from tiny_denoiser import tiny_network, tiny_sizes
from tiny_job import SIZE, make_tiny_job

from roboalign_ray.config import JobConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.pipelines.align.job import AlignResult, run_align
from roboalign_ray.pipelines.align.replay import run_replay
from roboalign_ray.world_model.diffusion.adapters import whole_weights
from roboalign_ray.world_model.diffusion.files import load_denoiser, save_denoiser
from roboalign_ray.world_model.registry import open_world_model

LORA = {"rank": 2, "targets": ("down", "up", "head")}


def diffusion_job(folder: Path, objective: str, winner: str, **diffusion: Any) -> JobConfig:
    """The tiny job with a denoiser in the place of its token model, and groups behind self-generated histories."""
    alignment = {
        "objective": objective,
        "learning_rate": 1e-2,
        "checkpoint_every": 1,
        "diffusion": {"micro_batch_clips": 8, **diffusion},
    }
    branching = {"first": 2, "most": 4, "groups_per_clip": 2, "winner": winner}
    rollout = {"refresh": {"policy": "none"}, "diffusion": {"action_noise": 0.3}, "branching": branching}
    config = make_tiny_job(folder, alignment=alignment, rollout=rollout)
    card = ActionCard.load(folder / "world_model")
    assert card is not None
    place = folder / "denoiser"
    sizes = tiny_sizes(views=1, height=SIZE, width=SIZE)
    save_denoiser(place, tiny_network(sizes), NoiseConfig(steps=2), card)
    return config.model_copy(update={"world_model_weights": str(place)})


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("diffusion_nft", LORA, "sampled"), id="nft lora"),
        pytest.param(("softmax_contrastive", {"rank": 0}, "best"), id="contrastive", marks=pytest.mark.slow),
    ],
)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    objective, lora, winner = request.param
    return diffusion_job(tmp_path_factory.mktemp("job"), objective, winner, lora=lora)


@pytest.fixture(scope="module")
def finished(
    ray_cluster: None, job: JobConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AlignResult, Path]:
    out = tmp_path_factory.mktemp("run") / "out"
    return run_align(job, out, quiet=True), out


def test_without_staleness_every_bit_is_that_of_a_straight_line(
    job: JobConfig, finished: tuple[AlignResult, Path]
) -> None:
    result, out = finished
    weights, lines, curves = straight_line(job)
    base = load_denoiser(Path(job.world_model_weights))[0].state_dict()
    assert (len(weights) < len(base)) == (job.alignment.diffusion.lora.rank > 0)
    expected = whole_weights(base, weights)
    found = load_denoiser(result.model)[0].state_dict()
    assert any(not torch.equal(value, base[name]) for name, value in found.items())
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    told = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    left = ("update", "group", "together")
    assert [{k: v for k, v in line.items() if k not in left} for line in told] == lines
    assert {"old_distance", "base_velocity_distance", "reward_deviation", "equal_rewards"} <= curves.keys()
    for name, values in curves.items():
        np.testing.assert_array_equal(result.curves[name][1], np.array(values, np.float64), err_msg=name)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    job: JobConfig, finished: tuple[AlignResult, Path], tmp_path: Path
) -> None:
    """The old policy and its place in the schedule come with the checkpoint."""
    whole, _ = finished
    short = job.model_copy(update={"alignment": job.alignment.model_copy(update={"updates": 1})})
    run_align(short, tmp_path / "out", quiet=True)
    resumed = run_align(job, tmp_path / "out", resume=True, quiet=True)
    expected, actual = (load_denoiser(result.model)[0].state_dict() for result in (whole, resumed))
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert resumed.counts == whole.counts


def test_a_replay_makes_its_groups_again(job: JobConfig, finished: tuple[AlignResult, Path]) -> None:
    _, out = finished
    result = run_replay(job, out, quiet=True)
    assert result.equal
    assert len(result.compared) == 8


def test_the_result_opens_as_a_world_model(job: JobConfig, finished: tuple[AlignResult, Path]) -> None:
    result, _ = finished
    card = open_world_model(result.model).card
    assert (card.kind, card.views, card.height) == ("diffusion", 1, SIZE)
