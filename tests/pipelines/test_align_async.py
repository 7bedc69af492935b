"""Alignment jobs with stale groups that are interrupted, lose workers, or are killed: toy-sized, on a local cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from align_kinds import AlignKind, kind_asked_for, of_kinds

from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.state_files import read_state
from roboalign_ray.pipelines.align import job as align
from roboalign_ray.pipelines.align.job import run_align
from roboalign_ray.world_model.registry import read_weights

WAIT_S = 300


@pytest.fixture(scope="module")
def kind(request) -> AlignKind:
    return kind_asked_for(request)


@pytest.fixture(scope="module")
def job(kind, tmp_path_factory):
    return kind.make(tmp_path_factory.mktemp("job"))


def changed(job, section, **values):
    return job.model_copy(update={section: getattr(job, section).model_copy(update=values)})


def with_role(job, role, **values):
    return changed(job, "cluster", **{role: getattr(job.cluster, role).model_copy(update=values)})


def journal(out: Path) -> list[dict]:
    path = out / "rollouts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def trained(out: Path) -> list[dict]:
    return [line for line in journal(out) if "failed" not in line]


def wait_for_updates(out: Path, updates: int) -> None:
    ends = time.monotonic() + WAIT_S
    while len({line["update"] for line in trained(out)}) < updates:
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.fixture
def crews(monkeypatch):
    """The crews of the jobs that run meanwhile."""
    hired, crew_of = [], align.crew_of

    @contextmanager
    def watched(config, out):
        with crew_of(config, out) as crew:
            hired.append(crew)
            yield crew

    monkeypatch.setattr(align, "crew_of", watched)
    return hired


def meanwhile(act) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in read_weights(folder).items()}


@of_kinds(slow=["diffusion_nft"])
def test_a_stale_run_outlives_a_lost_worker_and_goes_on_after_ctrl_c(ray_cluster, kind, job, crews, tmp_path):
    off_policy = job.asynchrony.off_policy.model_copy(update={"correction": kind.correction})
    stale = changed(job, "asynchrony", staleness=1, groups_per_call=1, off_policy=off_policy)
    stale = changed(stale, "alignment", updates=5, evaluate_every=5)
    out = tmp_path / "out"

    def disturb():
        wait_for_updates(out, 1)
        ray.kill(crews[0].rollouts.workers[0].actor, no_restart=True)
        wait_for_updates(out, 2)
        os.kill(os.getpid(), signal.SIGINT)

    disturbance = meanwhile(disturb)
    with pytest.raises(KeyboardInterrupt):
        run_align(stale, out, quiet=True)
    disturbance.join(WAIT_S)
    left = checkpoints.load(checkpoints.latest(out / "checkpoints"))
    assert 2 <= left.step <= 5
    result = run_align(stale, out, resume=True, quiet=True)

    lines = trained(out)
    assert sorted(line["group"] for line in lines) == list(range(20))
    assert [line["update"] for line in lines] == [update for update in range(5) for _ in range(4)]
    assert all(0 <= line["update"] - min(line["versions"]) <= 1 for line in lines)
    assert len({(line["prompt"], tuple(line["seeds"])) for line in lines}) == 20
    assert result.counts["groups"] == 20
    assert result.curves["reward_mean"][0].tolist() == [1, 2, 3, 4, 5]
    assert result.curves["held_out/reward_mean"][0].tolist() == [0, 5]
    assert result.curves["staleness_max"][1].max() <= 1
    if "resampled_apart" in kind.curves:  # stale clips are made again with the weights that sampled them
        assert not result.curves["resampled_apart"][1].any()
    for name in kind.curves | ({"importance_mean"} if kind.correction == "decoupled" else set()):
        assert np.isfinite(result.curves[name][1]).all()


@pytest.mark.chaos
@of_kinds()
@pytest.mark.parametrize(
    ("every", "done"), [(1, 2), (4, 1)], ids=["from a checkpoint", "before the first one: from the beginning"]
)
def test_a_lost_learner_is_replaced_and_the_run_ends_at_the_same_bits(
    ray_cluster, job, crews, tmp_path, every, done
):
    job = changed(job, "alignment", updates=4, evaluate_every=every, checkpoint_every=0)
    whole = run_align(job, tmp_path / "whole", quiet=True)
    crews.clear()
    out = tmp_path / "out"

    def disturb():
        wait_for_updates(out, done)
        ray.kill(crews[0].learner.pool.workers[0].actor, no_restart=True)

    disturbance = meanwhile(disturb)
    result = run_align(with_role(job, "learner", max_restarts=1), out, quiet=True)
    disturbance.join(WAIT_S)
    assert crews[0].workforce.lost == 1
    expected = weights_of(whole.model)
    for name, value in weights_of(result.model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert journal(out) == journal(tmp_path / "whole")
    assert result.counts == whole.counts


@pytest.mark.chaos
@of_kinds()
def test_a_learner_that_hangs_in_mid_checkpoint_is_noticed_by_its_silence(ray_cluster, job, crews, tmp_path):
    liveness = job.asynchrony.liveness.model_copy(update={"every_s": 1.0, "silence_s": 8.0})
    job = changed(changed(job, "alignment", updates=3), "asynchrony", liveness=liveness)
    out = tmp_path / "out"

    def disturb():
        learner = None
        ends = time.monotonic() + WAIT_S
        while not list(out.glob("checkpoints/.writing-*")):
            assert time.monotonic() < ends
            if learner is None and crews:
                actor = crews[0].learner.pool.workers[0].actor
                learner = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)
            time.sleep(0.002)
        os.kill(learner, signal.SIGSTOP)

    disturbance = meanwhile(disturb)
    began = time.monotonic()
    run_align(with_role(job, "learner", max_restarts=1), out, quiet=True)
    disturbance.join(WAIT_S)
    assert crews[0].workforce.lost == 1
    assert time.monotonic() - began < job.cluster.learner.deadline_s
    assert sorted(line["group"] for line in trained(out)) == list(range(12))


# A run that kills its own processes at a point within update number k; k updates are done then.
KILLED = """
import os, signal, sys
from pathlib import Path
import roboalign_ray.pipelines.align.learner, roboalign_ray.pipelines.align.loop
from roboalign_ray.pipelines.align.job import run_align
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.storage import checkpoints

settings, out, owner, name, updates = sys.argv[1:]
Loop, loops = roboalign_ray.pipelines.align.loop.AlignmentLoop, []
begin = Loop.__init__
def began(self, *args, **kwargs):
    loops.append(self)
    begin(self, *args, **kwargs)
Loop.__init__ = began

owner = {"loop": Loop, "learner": roboalign_ray.pipelines.align.learner.Learner, "checkpoints": checkpoints}[owner]
method = getattr(owner, name)
def struck(*args, **kwargs):
    if loops[-1].version == int(updates):
        if name == "update":
            method(*args, **kwargs)  # under way
        os.killpg(0, signal.SIGKILL)
    return method(*args, **kwargs)
setattr(owner, name, struck)
run_align(JobConfig.model_validate_json(Path(settings).read_text()), Path(out), quiet=True)
"""
POINTS = {
    "first rollouts back": ("loop", "_rolled_out"),
    "first scores back": ("loop", "_scored"),
    "update under way": ("learner", "update"),
    "weights on their way": ("loop", "_published"),
    "checkpoint without its manifest": ("checkpoints", "_seal"),
}
UPDATES = 4
KILLS = [
    *((1, point) for point in POINTS),
    (0, "first scores back"),
    (2, "weights on their way"),
    (3, "update under way"),
    (4, "checkpoint without its manifest"),
]


@pytest.fixture(scope="module")
def golden(job):
    """A job whose rollouts differ in length, or in the length of their histories; each update has its checkpoint."""
    job = changed(job, "alignment", updates=UPDATES, checkpoint_every=1, evaluate_every=2)
    for role in ("rollout", "scorer", "learner"):
        job = with_role(job, role, deadline_s=WAIT_S)  # two runs beside each other take long to come up
    if job.rollout.branching.most:
        return job
    horizons = job.rollout.horizons.model_copy(update={"shape": "uniform", "least": 1})
    return changed(job, "rollout", horizons=horizons)


@pytest.fixture(scope="module")
def whole(ray_cluster, golden, tmp_path_factory):
    """The run that is not killed: its result and its folder."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return run_align(golden, out, quiet=True), out


@pytest.mark.slow
@pytest.mark.chaos
@of_kinds()
@pytest.mark.parametrize(("updates", "point"), KILLS)
def test_a_killed_run_goes_on_to_the_same_bits(golden, whole, tmp_path, updates, point):
    expected, uninterrupted = whole
    out, settings = tmp_path / "out", tmp_path / "job.json"
    settings.write_text(golden.model_dump_json())
    command = [sys.executable, "-c", KILLED, settings, out, *POINTS[point], str(updates)]
    assert subprocess.run(command, start_new_session=True, timeout=WAIT_S).returncode == -signal.SIGKILL
    before = checkpoints.latest(out / "checkpoints")
    assert (0 if before is None else checkpoints.load(before).step) == max(
        0, updates - (point == "checkpoint without its manifest")
    )
    result = run_align(golden, out, resume=True, quiet=True)

    weights = weights_of(expected.model)
    for name, value in weights_of(result.model).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    assert journal(out) == journal(uninterrupted)
    lengths = {(line["units"], line["prompt"].partition("~")[2]) for line in journal(out)}
    assert len(lengths) > 2
    assert result.counts == expected.counts
    for ours, theirs in zip(kept(out), kept(uninterrupted), strict=True):
        assert_same_state(ours, theirs)
    for name, (steps, values) in expected.curves.items():
        if "second" not in name:
            np.testing.assert_array_equal(result.curves[name][0], steps)
            if not name.startswith(("groups_", "scorer_queue")):
                np.testing.assert_array_equal(result.curves[name][1], values, err_msg=name)


def kept(out: Path) -> list[checkpoints.Checkpoint]:
    return [checkpoints.load(folder) for folder in checkpoints.complete(out / "checkpoints").values()]


def assert_same_state(ours: checkpoints.Checkpoint, theirs: checkpoints.Checkpoint) -> None:
    """Parameters, optimizer, random state, and the accounts of ledger and buffer with the next prompt's number."""
    assert ours.step == theirs.step
    assert ours.metadata["loop"]["groups"] == theirs.metadata["loop"]["groups"]
    assert ours.metadata["loop"]["controller"] == theirs.metadata["loop"]["controller"]
    files = sorted(path.relative_to(ours.folder) for path in (ours.folder / "state").iterdir())
    assert [path.name for path in files] == ["model.safetensors", "rank-0.safetensors"]
    for path in files:
        mine, other = (read_state(at.folder / path) for at in (ours, theirs))
        assert_same(mine, other, str(path))
    assert mine["optimizer"]
    assert mine["extra"]["generator"].numel()


def assert_same(ours, theirs, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            assert_same(ours[name], theirs[name], f"{where}: {name}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, other, f"{where}[{number}]")
    elif isinstance(ours, int | float | str | bool | None):
        assert ours == theirs, where
