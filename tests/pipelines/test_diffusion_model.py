"""Jobs that take a diffusion world model of two views as they take any other: only the registry knows its kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_denoiser import tiny_network, tiny_sizes
from tiny_job import EPISODES, SIZE, make_tiny_job, square_episode

from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.alignment.records.group_files import load_group, save_group
from roboalign_ray.config import JobConfig, NoiseConfig
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics.frame_metrics import to_images
from roboalign_ray.metrics.perceptual import load_lpips
from roboalign_ray.pipelines.evaluate.job import run_evaluate
from roboalign_ray.pipelines.preflight.job import Preflight, find_fault
from roboalign_ray.pipelines.rollout.job import RolloutRequest, run_rollout
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.diffusion.files import save_denoiser

SEEDS = [(1, 2, 3), (4, 5, 6)]
VIEWS = ("front", "below")


def write_model(job: JobConfig, folder, **changes) -> None:
    sizes = tiny_sizes(height=SIZE, width=SIZE, **changes)
    card = fitted_action_card(open_store(job.episodes.store), job.episodes)
    save_denoiser(folder, tiny_network(sizes), NoiseConfig(steps=1), card)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    """The tiny job; its episodes have a second camera that sees the first one's pictures upside down."""
    root = tmp_path_factory.mktemp("diffusion job")
    config = make_tiny_job(
        root,
        world_model_weights=str(root / "diffusion"),
        reward={"fidelity": {"weight": 1.0}},
        alignment={"objective": "diffusion_nft"},
        evaluation={
            "episodes": 2,
            "horizon": 4,
            "windows": [2],
            "bootstrap_resamples": 20,
        },
    )
    both = (
        replace(e, frames={**e.frames, "below": e.frames["front"][:, ::-1]})
        for e in (square_episode(number) for number in range(EPISODES))
    )
    write_store(both, root / "two_views", held_out_fraction=0.3)
    episodes = config.episodes.model_copy(update={"store": str(root / "two_views"), "views": VIEWS})
    config = config.model_copy(update={"episodes": episodes})
    write_model(config, root / "diffusion")
    return config


def test_actors_roll_out_and_score_all_views(job, tmp_path) -> None:
    names = schedule_from_store(job.episodes, job.rollout, 0).train(0, 2)
    folder = job.world_model_weights
    rollouts, report = RolloutActor(folder, job.rollout, job.episodes).rollout(names, SEEDS)
    assert report.units == 2 * 3 * job.rollout.horizon
    assert not report.failed
    scorer = ScorerActor(folder, job.reward, job.episodes)
    *scored, records = scorer.score(rollouts)
    save_group(tmp_path / "group.npz", scored[0])
    again = load_group(tmp_path / "group.npz").rollout
    *_, [record] = scorer.score([again])
    assert record.scores == records[0].scores
    assert scorer.video(scored[0]).startswith(b"GIF8")
    # The reward is the mean over both views: what LPIPS itself says of each of them.
    generated = scorer._decoder.decode(rollouts[0])[0]
    real = scorer._reader.recorded(names[0], len(generated)).frames[1:]
    assert generated.shape == real.shape == (4, 2, SIZE, SIZE, 3)
    lpips = load_lpips("alex")
    per_view = [
        float(lpips(to_images(generated[:, view]), to_images(real[:, view])).mean()) for view in range(2)
    ]
    assert per_view[0] != pytest.approx(per_view[1], rel=1e-3)
    score = records[0].scores[0]
    assert isinstance(score, Scored)
    assert score.components["lpips"] == pytest.approx(np.mean(per_view), rel=1e-4)


def test_evaluate_measures_each_view(job, tmp_path) -> None:
    result = run_evaluate(job, tmp_path / "out", quiet=True)
    assert "reconstruction" not in result
    policies = ["plain autoregression", "SWR, W = 2", "token window, W = 2", "reference + recent, W = 2"]
    assert [row["policy"] for row in result["long_horizon"]["rows"]] == [*policies, "copy first frame"]
    assert list(result["long_horizon"]["views"]) == policies
    for row in result["long_horizon"]["rows"][:-1]:
        views = result["long_horizon"]["views"][row["policy"]]
        assert list(views) == list(VIEWS)
        assert row["psnr"] == pytest.approx(np.mean([figures["psnr"] for figures in views.values()]))
    assert list(result["one_step"]["views"]["predicted"]) == list(VIEWS)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result


def test_rollout_writes_all_views(job, tmp_path) -> None:
    store = open_store(job.episodes.store)
    request = RolloutRequest(episode=store.ids[0], horizon=4, samples=2)
    done = run_rollout(job, request, tmp_path / "out")
    assert done.frames.shape == (2, 4, 2, SIZE, SIZE, 3)
    for name in ("rollout.mp4", "rollout.gif"):
        assert (tmp_path / "out" / name).stat().st_size
    told = json.loads((tmp_path / "out" / "rollout.json").read_text())
    assert (told["card"]["kind"], told["card"]["views"]) == ("diffusion", 2)
    [first, _] = LeRobotSource(tmp_path / "out" / "dataset").episodes()
    assert len(first.frames) == 2
    assert first.length == 5


def test_jobs_are_told_what_the_model_cannot_do_before_they_start(job, tmp_path) -> None:
    for kind in ("align", "evaluate"):
        assert find_fault(Preflight(kind, job)) is None
    refresh = job.rollout.refresh.model_copy(update={"policy": "sinks"})
    wrong = [(job, {"refresh": refresh}, "no refresh policy 'sinks'")]
    write_model(job, tmp_path / "clips", clip_frames=2)
    clips = job.model_copy(update={"world_model_weights": str(tmp_path / "clips")})
    assert find_fault(Preflight("align", clips)) is None
    wrong.append((clips, {"horizon": 5}, "5 frames are no whole number of the world model's clips of 2"))
    horizons = job.rollout.horizons.model_copy(update={"shape": "uniform"})
    wrong.append((clips, {"horizons": horizons}, "rollouts of any length"))
    odd = job.rollout.refresh.model_copy(update={"window": 3})
    wrong.append((clips, {"refresh": odd}, "3 frames are no whole number"))
    branching = job.rollout.branching.model_copy(update={"most": 4})
    wrong.append((clips, {"branching": branching}, "rollout.branching.clip_frames: 1 frames are no whole"))
    for config, changes, told in wrong:
        rollout = config.rollout.model_copy(update=changes)
        fault = find_fault(Preflight("align", config.model_copy(update={"rollout": rollout})))
        assert isinstance(fault, UserError)
        assert told in fault.line()


def test_an_objective_of_another_kind_is_told_before_anything_starts(job) -> None:
    alignment = job.alignment.model_copy(update={"objective": "grpo"})
    fault = find_fault(Preflight("align", job.model_copy(update={"alignment": alignment})))
    assert isinstance(fault, UserError)
    assert "'grpo' trains world models of kind 'token', and this one is of kind 'diffusion'" in fault.line()
    tokens = str(Path(job.world_model_weights).with_name("world_model"))
    other = job.model_copy(update={"world_model_weights": tokens})
    assert "trains world models of kind 'diffusion'" in find_fault(Preflight("align", other)).line()


def test_a_job_that_would_train_another_denoiser_is_told(job) -> None:
    own = job.model_copy(update={"world_model_kind": "diffusion"})
    fault = find_fault(Preflight("evaluate", own))
    assert isinstance(fault, UserError)
    assert "holds another denoiser (" in fault.line()
