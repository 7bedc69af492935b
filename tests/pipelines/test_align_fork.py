"""A fork of a toy-sized run: the parent's weights and optimizer, an id, a journal and settings of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_job import make_tiny_job

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.pipelines.align.job import run_align
from roboalign_ray.world_model.token.transformer import load_pretrained


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    role = {"num_cpus": 0.5, "threads": 1, "deadline_s": 600}
    roles = {"rollout": role, "scorer": role, "learner": {**role, "max_restarts": 0}}
    return make_tiny_job(tmp_path_factory.mktemp("job"), cluster=roles)


@pytest.fixture(scope="module")
def parent(ray_cluster, job, tmp_path_factory) -> Path:
    """Two updates, with a checkpoint after each."""
    out = tmp_path_factory.mktemp("parent") / "out"
    run_align(job, out, quiet=True)
    return out


def changed(job, **alignment):
    return job.model_copy(update={"alignment": job.alignment.model_copy(update=alignment)})


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_pretrained(folder)[0].state_dict().items()}


def updates_in_journal(out: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (out / "rollouts.jsonl").read_text().splitlines()]


def held_in(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


@pytest.mark.slow
def test_with_the_same_settings_a_fork_does_what_its_parent_did(job, parent, tmp_path):
    out = tmp_path / "fork"
    result = run_align(job, out, fork=parent / "checkpoints" / "step-00000001", quiet=True)
    expected = weights(parent / "aligned")
    for name, value in weights(result.model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    ours, theirs = held_in(out), held_in(parent)
    assert ours["run"] != theirs["run"]
    assert ours["parent"] == {"run": theirs["run"], "step": 1}
    assert checkpoints.load(out / "checkpoints" / "step-00000002").metadata["parent"] == ours["parent"]
    assert updates_in_journal(out) == [1] * 4
    assert result.counts["groups"] == 4
    assert result.curves["held_out/reward_mean"][0].tolist() == [1, 2]
    assert updates_in_journal(parent) == [0] * 4 + [1] * 4  # the parent is left as it is


@pytest.mark.slow
def test_a_fork_with_other_settings_goes_another_way_and_can_be_resumed(job, parent, tmp_path):
    """Of a run's folder the newest checkpoint is taken; other groups, another learning rate."""
    out = tmp_path / "fork"
    other = changed(job, updates=3, learning_rate=1e-2, prompts_per_update=2, group_size=2)
    first = run_align(other, out, fork=parent, quiet=True)
    assert updates_in_journal(out) == [2] * 2
    before = weights(parent / "aligned")
    moved = max(float(np.abs(value - before[name]).max()) for name, value in weights(first.model).items())
    # one optimizer step of AdamW moves a weight by about the learning rate: ten times the parent's
    assert 5e-3 < moved < 2e-2
    identity = held_in(out)
    run_align(changed(other, updates=4), out, resume=True, quiet=True)
    assert updates_in_journal(out) == [2] * 2 + [3] * 2
    assert held_in(out) == identity


def test_what_cannot_be_forked_is_one_line_and_leaves_nothing(job, parent, tmp_path):
    out = tmp_path / "fork"
    with pytest.raises(UserError, match="2 updates already, and the fork is to end after 2"):
        run_align(job, out, fork=parent, quiet=True)
    with pytest.raises(UserError, match="manifest"):
        run_align(job, out, fork=tmp_path, quiet=True)
    with pytest.raises(UserError, match="leave one out"):
        run_align(job, out, fork=parent, resume=True, quiet=True)
    assert not any((out / name).exists() for name in ("checkpoints", "run.json"))
    with pytest.raises(UserError, match="holds an alignment run already"):
        run_align(changed(job, updates=3), parent, fork=parent, quiet=True)
