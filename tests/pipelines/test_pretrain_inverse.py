"""Pre-training an inverse dynamics model as a job: what it leaves, how it is measured, and what is refused."""

from __future__ import annotations

from pathlib import Path

import made_motion as made
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.run_record import read_record
from roboalign_ray.foundation.telemetry.metrics import read_curves
from roboalign_ray.inverse_dynamics.measurement import Measurement
from roboalign_ray.inverse_dynamics.model import load_inverse_model
from roboalign_ray.pipelines.preflight.job import Preflight, find_fault
from roboalign_ray.pipelines.train.inverse_stage import held_out_clips
from roboalign_ray.pipelines.train.world_model import run_pretrain

STEPS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("motion") / "store"
    write_store((made.motion_episode(number) for number in range(16)), path, held_out_fraction=0.3)
    return path


def job(store: Path, views: tuple[str, ...] = ("front", "wrist"), **changes: dict) -> JobConfig:
    inverse = {
        "network": made.NETWORK.model_dump(),
        "training": {**made.TRAINING.model_dump(), "steps": STEPS, "log_every": 1, "checkpoint_every": 25},
        "gate": {"clips": 6, "clip_frames": 8, "least_r2": 0.99},
    }
    for name, change in changes.items():
        inverse[name] = {**inverse[name], **change}
    return JobConfig.model_validate(
        {
            "episodes": {"store": str(store), "held_out_fraction": 0.3, "views": views},
            "inverse_dynamics": inverse,
            "cluster": {"object_store_gb": 0.2, "trainer": {"num_cpus": 0.5, "threads": 1}},
        }
    )


@pytest.mark.slow
def test_a_run_leaves_a_measured_model_and_resumes_to_the_same_bits(
    store: Path, tmp_path: Path, ray_cluster: None
) -> None:
    config, out = job(store), tmp_path / "run"
    summary = run_pretrain(config, out, "inverse_dynamics", quiet=True)["inverse_dynamics"]
    folder = out / "inverse_dynamics"
    assert [path.name for path in out.iterdir() if path.name in ("tokenizer", "world_model")] == []
    losses = read_curves(out / "logs" / "inverse_dynamics")["action_loss"][1]
    assert losses[-10:].mean() < 0.7 * losses[:5].mean()

    model, measured = load_inverse_model(folder), Measurement.load(folder)
    assert model.views == ("front", "wrist")
    assert model.card == fitted_action_card(open_store(store), config.episodes)
    assert read_record(folder).action_card == model.card.hash
    assert summary["steps"] == STEPS
    assert summary["r2/delta_row [px]"] == measured.dimensions[0].r2
    assert summary["gate_open"] == 0  # so few steps do not reach 0.99
    assert measured.actions == 6 * 7
    clips, actions = held_out_clips(config)
    assert clips.shape == (6, 8, 2, made.SIDE, made.SIDE, 3)
    assert actions.shape == (6, 7, 2)

    before = load_file(folder / "model.safetensors")
    folder.rename(tmp_path / "first")
    run_pretrain(config, out, "inverse_dynamics", quiet=True)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_held_out_clips_are_of_held_out_episodes_with_the_actions_between_their_frames(store: Path) -> None:
    clips, actions = held_out_clips(job(store, views=()))
    assert clips.shape[2] == 1  # the first view of each episode
    for clip, steps in zip(clips, actions, strict=True):
        bright = [frame[0].max(-1) > 100 for frame in clip]
        rows = [seen.any(1).argmax() for seen in bright]
        columns = [seen.any(0).argmax() for seen in bright]
        np.testing.assert_array_equal(np.diff(rows), steps[:, 0])
        np.testing.assert_array_equal(np.diff(columns), steps[:, 1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gate": {"clip_frames": 40}}, "no episode of split 'held_out' has the 40 frames"),
        (
            {"network": {"reach": 12}, "gate": {"clip_frames": 25}},
            "no episode of split 'train' has the 25 frames",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_ray_starts(changes: dict, told: str, store: Path) -> None:
    fault = find_fault(Preflight("pretrain", job(store, **changes), stages=("inverse_dynamics",)))
    assert fault is not None
    assert told in fault.line()


def test_neither_tokenizer_nor_world_model_is_asked_for(store: Path) -> None:
    config = job(store).model_copy(
        update={"tokenizer_weights": "/nowhere", "world_model_weights": "/nowhere"}
    )
    assert find_fault(Preflight("pretrain", config, stages=("inverse_dynamics",))) is None
