"""Jobs of closed-loop planning as a user runs them: the table and its resume, single agents, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_store import SIZE, labelled_store

from roboalign_ray.config import JobConfig, ProgressConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.sources.opengl import require_simulator
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.planning.rows import TableRequest, run_table
from roboalign_ray.pipelines.planning.run_agent import run_agent
from roboalign_ray.pipelines.train.progress import run_train_progress
from roboalign_ray.planning.closed_loop.table import ROWS
from roboalign_ray.planning.progress.card import ProgressCard
from roboalign_ray.planning.progress.network import ProgressNetwork

TASK = "window-close"
SHORT = (
    *("agent.decisions=3", "agent.horizon=2", "agent.replan=2", "agent.search.candidates=2"),
    *("agent.search.iterations=1", "agent.search.elites=1", "agent.search.knots=null"),
    *("simulation.supersample=1", "reward.fidelity.lpips_network=random-alex"),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """An untrained network with the card of the shipped world model's frames."""
    folder = tmp_path_factory.mktemp("cost") / "progress"
    torch.manual_seed(0)
    card = ProgressCard(tasks=(TASK,), views=("front",), height=64, width=64, embodiments=("sawyer",))
    ProgressNetwork(ProgressConfig(channels=(8, 8, 8, 8), hidden=16), card).save(folder)
    return folder


@pytest.fixture(scope="module")
def job(weights: Path) -> JobConfig:
    try:
        require_simulator()
    except UserError as error:
        pytest.skip(str(error))
    return load_job("demo", [*SHORT, f"agent.progress_weights={weights}"])


def written(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in (folder / "episodes").glob("*/*.json")}


@pytest.mark.slow
def test_every_row_runs_and_complete_episodes_are_kept(job, tmp_path) -> None:
    rows = tuple(ROWS)
    told = run_table(job, tmp_path, TableRequest((TASK,), rows, starts=1), quiet=True)
    rates = told["tasks"][TASK]["rates"]
    assert {name: rate["n"] for name, rate in rates.items()} == dict.fromkeys(rows, 1)
    assert json.loads((tmp_path / "planning.json").read_text()) == told
    costs = told["tasks"][TASK]["costs"]
    for name in ("simulator+privileged", "simulator+progress"):
        assert costs[name]["predicted"] == pytest.approx(costs[name]["real"])
    assert costs["model+progress"]["predicted"] != costs["model+progress"]["real"]
    page = (tmp_path / "planning.html").read_text("utf-8")
    assert all(ROWS[name].title in page for name in rows)
    before = written(tmp_path)
    assert len(before) == len(rows)
    more = run_table(job, tmp_path, TableRequest((TASK,), ("nothing", "random"), starts=2), quiet=True)
    after = written(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    assert more["tasks"][TASK]["rates"]["nothing"]["n"] == 2
    assert more["tasks"][TASK]["rates"]["expert"]["n"] == 1
    other = job.model_copy(update={"seed": 4})
    with pytest.raises(UserError, match="seed"):
        run_table(other, tmp_path, TableRequest((TASK,), ("nothing",), starts=1), quiet=True)


@pytest.mark.slow
def test_workers_in_other_processes_make_the_same_episodes(job, tmp_path) -> None:
    request = TableRequest((TASK,), ("random", "held-expert"), starts=2)
    alone = run_table(job, tmp_path / "one", request, quiet=True)
    pool = TableRequest((TASK,), ("random", "held-expert"), starts=2, workers=2)
    assert run_table(job, tmp_path / "two", pool, quiet=True) == alone
    for name in written(tmp_path / "one"):
        one, two = (json.loads((tmp_path / part / name).read_text()) for part in ("one", "two"))
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_single_agent_leaves_video_figures_and_page(job, tmp_path) -> None:
    told = run_agent(job, TASK, tmp_path, row="model+progress", episodes=2, command=["roboalign"], quiet=True)
    figures = json.loads((tmp_path / "agent.json").read_text())
    assert [episode["start"] for episode in figures["episodes"]] == [10000, 10001]
    assert figures["episodes"] == told["episodes"]
    for episode, video in zip(told["episodes"], told["videos"], strict=True):
        assert len(episode["predicted"]) == len(episode["real"]) == 2  # two plans for three decisions
        frames = decode_video(Path(video))
        assert frames.shape[:2] == (4, 256)
        assert frames.shape[2] // 4 == 2 * 64 + 1
        first = frames[0, :, : 4 * 64].astype(int)
        np.testing.assert_allclose(first, frames[0, :, -4 * 64 :], atol=40)  # both begin with the start
    page = (tmp_path / "agent.html").read_text("utf-8")
    assert page.count("<video ") == 2
    assert "start 10000" in page


@pytest.mark.slow
def test_the_cost_is_trained_once_and_measured_on_held_out_starts(tmp_path) -> None:
    store = labelled_store(tmp_path / "store")
    changes = {
        "episodes": {"store": str(store.path), "views": ("b",), "held_out_fraction": 0.3},
        "agent": {
            "progress": {
                **{"height": SIZE, "width": SIZE, "channels": (8, 8, 8, 8), "hidden": 16},
                **{"steps": 4, "warmup": 1, "frames_per_step": 8, "log_every": 2, "checkpoint_every": 3},
            }
        },
        "cluster": {"object_store_gb": 0.2, "trainer": {"num_cpus": 0.5, "threads": 1, "max_restarts": 0}},
    }
    config = JobConfig.model_validate(changes)
    told = run_train_progress(config, tmp_path / "out", quiet=True)
    network = ProgressNetwork.load(told["weights"])
    assert (network.card.tasks, network.card.views) == (("slide", "turn"), ("b",))
    held_out = {store.group_ids[n].split("/")[2] for n in store.split("held_out")}
    assert told["errors"]["turn"]["starts"] == network.card.errors["turn"].starts <= len(held_out)
    assert told["training"]["steps"] == 4
    weights = Path(told["weights"]) / "progress.safetensors"
    before = weights.stat().st_mtime_ns
    assert run_train_progress(config, tmp_path / "out", quiet=True) == told
    assert weights.stat().st_mtime_ns == before


BAD = {
    "unknown task": (["agent", "run", "window-clsoe"], "did you mean 'window-close'"),
    "unknown row": (["agent", "run", TASK, "--row", "modle+goal"], "did you mean 'model+goal'"),
    "no learned cost": (["agent", "run", TASK], "roboalign agent train-cost"),
    "no such weights": (["agent", "run", TASK, "--set", "agent.progress_weights=nowhere"], "nowhere"),
    "a cost of another task": (
        ["agent", "run", "push", "--set", "agent.progress_weights=WEIGHTS"],
        "was not trained on the task 'push'",
    ),
    "more decisions than planned": (["agent", "run", TASK, "--set", "agent.replan=9"], "agent.horizon"),
    "unknown planner": (
        ["agent", "run", TASK, "--row", "model+goal", "--set", "agent.planner=cme"],
        "unknown planner 'cme'",
    ),
    "unknown setting of the planner": (
        ["agent", "run", TASK, "--row", "model+goal", "--set", "agent.search.tempo=1"],
        "unknown key 'tempo'",
    ),
    "no world model": (
        ["agent", "run", TASK, "--row", "random", "--set", "world_model_weights=nowhere"],
        "no such folder; set world_model_weights",
    ),
    "no episodes": (["agent", "run", TASK, "--episodes", "0"], "--episodes"),
    "no task of a table": (["reproduce", "planning"], "no task is named"),
    "unknown row of a table": (["reproduce", "planning", "--task", TASK, "--row", "x"], "no row 'x'"),
    "no store": (
        ["agent", "train-cost", "demo", "--set", "episodes.store=nowhere"],
        "no such folder; make one with",
    ),
    "a task that the store lacks": (
        ["agent", "train-cost", "demo", "--set", "agent.progress.tasks=[window-clsoe]"],
        "did you mean 'window-close'",
    ),
    "shares": (
        *(["agent", "train-cost", "demo", "--set", "agent.progress.frames_per_step=7", "--set"],),
        "do not divide",
    ),
}
BAD["shares"][0].append("cluster.trainer.workers=2")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line(name, weights, tmp_path, monkeypatch, capsys) -> None:
    try:
        require_simulator()
    except UserError as error:
        pytest.skip(str(error))
    words, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    given = [word.replace("WEIGHTS", str(weights)) for word in words]
    assert run([*given, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]
    assert told[-1].startswith("error: ")
    assert not any(tmp_path.rglob("*.mp4"))
