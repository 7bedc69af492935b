"""Pre-training a diffusion world model as a job: what it reads, leaves, resumes to, and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import EPISODES, SIZE, square_episode

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.run_record import read_record
from roboalign_ray.foundation.telemetry.metrics import read_curves
from roboalign_ray.pipelines.preflight.job import Preflight, find_fault
from roboalign_ray.pipelines.train.world_model import run_pretrain
from roboalign_ray.world_model.diffusion.files import load_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.registry import read_description

STEPS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of a moving square; view "wrist" shows it mirrored."""
    path = tmp_path_factory.mktemp("two_views") / "store"
    made = (square_episode(number) for number in range(EPISODES))
    both = (replace(e, frames={**e.frames, "wrist": e.frames["front"][:, :, ::-1]}) for e in made)
    write_store(both, path, held_out_fraction=0.3)
    return path


def job(store: Path, **changes: dict) -> JobConfig:
    sections: dict = {
        "world_model_kind": "diffusion",
        "episodes": {"store": str(store), "held_out_fraction": 0.3, "views": ["front", "wrist"]},
        "diffusion": {
            "denoiser": {
                "views": 2,
                "height": SIZE,
                "width": SIZE,
                "channels": [8, 16],
                "blocks": 1,
                "heads": 2,
                "history": [0, 2],
                "action_dims": 2,
            },
            "training": {
                "steps": STEPS,
                "windows_per_step": 2,
                "clips_per_window": 2,
                "context_range": 2,
                "own_history_from": 0.3,
                "perceptual_network": "random-alex",
                "log_every": 1,
                "checkpoint_every": 4,
                "warmup_steps": 1,
            },
        },
        "cluster": {"object_store_gb": 0.2, "trainer": {"num_cpus": 0.5, "threads": 1}},
    }
    for name, change in changes.items():
        sections[name] = _merged(sections.get(name), change)
    return JobConfig.model_validate(sections)


def _merged(old: object, new: object) -> object:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


@pytest.mark.slow
def test_a_run_leaves_a_folder_that_opens_and_resumes_to_the_same_bits(
    store: Path, tmp_path: Path, ray_cluster: None
) -> None:
    config, out = job(store), tmp_path / "run"
    summary = run_pretrain(config, out, quiet=True)
    assert list(summary) == ["world_model"]
    assert summary["world_model"]["steps"] == STEPS
    curves = read_curves(out / "logs" / "world_model")
    assert curves["loss"][0].tolist() == list(range(1, STEPS + 1))
    assert (curves["lpips"][1] > 0).all()
    assert curves["own_clips"][1].tolist() == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]  # steps 0 to 5; grown over .3 to .6 of the training
    assert not (out / "tokenizer").exists()

    folder = out / "world_model"
    network, told = load_denoiser(folder)
    assert read_description(folder).kind == "diffusion"
    assert told.denoiser == config.diffusion.denoiser
    assert told.card == fitted_action_card(open_store(store), config.episodes)
    assert read_record(folder).action_card == told.card.hash
    torch.manual_seed(config.seed)
    untrained = Denoiser(config.diffusion.denoiser).state_dict()
    assert any(not torch.equal(network.state_dict()[name], value) for name, value in untrained.items())

    # As if the process had died before its last steps: only what the checkpoint of step 4 kept is left.
    before, at = load_file(folder / "model.safetensors"), written(out)
    folder.rename(tmp_path / "first")
    run_pretrain(config, out, quiet=True)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before)
    np.testing.assert_array_equal(read_curves(out / "logs" / "world_model")["loss"][1], curves["loss"][1])
    later = written(out)
    assert later[:4] == at[:4]
    assert not {*later[4:]} & {*at[4:]}  # the last steps were made again, the first ones were not


def written(out: Path) -> list[float]:
    """When each step's row was written."""
    lines = (out / "logs" / "world_model" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["time"] for line in lines]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"episodes": {"views": ["front", "hand"]}}, "no view 'hand'"),
        ({"diffusion": {"denoiser": {"action_dims": 3}}}, "diffusion.denoiser.action_dims to 2"),
        ({"diffusion": {"training": {"clips_per_window": 20}}}, "23 frames of a window"),
        ({"cluster": {"trainer": {"workers": 3}}}, "2 windows a step do not divide among 3 workers"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_ray_starts(changes: dict, told: str, store: Path) -> None:
    fault = find_fault(Preflight("pretrain", job(store, **changes)))
    assert fault is not None
    assert told in fault.line()


def test_views_of_job_and_denoiser_must_be_as_many(store: Path) -> None:
    with pytest.raises(UserError, match=r"the denoiser has 2 views, episodes.views names 1"):
        job(store, episodes={"views": ["front"]})


def test_a_stage_that_the_kind_has_not_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a diffusion world model has no tokenizer"):
        run_pretrain(job(store), tmp_path / "run", "tokenizer")
