"""Actors, records and evaluation with a world model made of no tokens: only the registry knows its kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_job import EPISODES, make_tiny_job, square_episode
from toy_world_model import ToyPayload, ToySegment, install_toy, write_toy

from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.alignment.records.group_files import load_group, save_group
from roboalign_ray.config import EvaluationConfig, RefreshConfig
from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.store import write_store
from roboalign_ray.evaluation.protocols import EvaluationWindow, evaluate_rollouts, one_step
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.metrics.perceptual import load_lpips
from roboalign_ray.pipelines.preflight.job import Preflight, find_fault
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.registry import open_world_model

SEEDS = [(1, 2, 3), (4, 5, 6)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("toy job")


@pytest.fixture(scope="module")
def job(root):
    write_toy(root / "toy", views=1)
    install_toy(root / "site")
    objective = {"objective": "toy_objective:ToyObjective"}
    return make_tiny_job(root, world_model_weights=str(root / "toy"), alignment=objective)


@pytest.fixture(autouse=True)
def _installed(job, root, monkeypatch) -> None:
    monkeypatch.syspath_prepend(root / "site")


@pytest.fixture
def names(job):
    return schedule_from_store(job.episodes, job.rollout, 0).train(0, 2)


def test_rollouts_are_made_scored_recorded_and_kept(job, root, names, tmp_path):
    actor = RolloutActor(root / "toy", job.rollout, job.episodes)
    scorer = ScorerActor(root / "toy", job.reward, job.episodes)
    rollouts, report = actor.rollout(names, SEEDS)
    assert report.units == 2 * 3 * job.rollout.horizon
    assert actor.beat() > 0
    *scored, records = scorer.score(rollouts)
    assert all(isinstance(score, Scored) for group in scored for score in group.scores)
    assert [record.units for record in records] == [3 * job.rollout.horizon] * 2
    assert records[0].versions == (0, 0)
    save_group(tmp_path / "group.npz", scored[0])
    again = load_group(tmp_path / "group.npz")
    assert isinstance(again.rollout.payload, ToyPayload)
    *_, [record] = scorer.score([again.rollout])
    assert record.scores == records[0].scores


def test_weights_travel_and_a_damaged_rollout_costs_its_own_scores(job, root, names):
    actor = RolloutActor(root / "toy", job.rollout, job.episodes)
    actor.load_weights(3, {"gain": np.float64(0.0)})
    rollouts, _ = actor.rollout(names, SEEDS, 3)
    assert rollouts[0].versions == (3, 3)
    first, *later = rollouts[0].payload.segments
    payload = ToyPayload((ToySegment(first.places + np.inf, first.version), *later))
    scorer = ScorerActor(root / "toy", job.reward, job.episodes)
    *_, records = scorer.score([replace(rollouts[0], payload=payload), rollouts[1]])
    assert all(isinstance(score, Failed) and "left the world" in score.reason for score in records[0].scores)
    assert all(isinstance(score, Scored) for score in records[1].scores)


def test_a_branch_is_scored_against_the_frames_that_it_is_about(job, root, names):
    """A rollout that begins behind a branch is held against the real frames of that time."""
    model = open_world_model(root / "toy", job.rollout)
    reader = PromptReader(job.episodes, model.card.height, model.card.width)
    prompt = reader.prompt(names[0], 4)
    state = model.step(model.begin([prompt], [(1,)]), prompt.actions[None, :2])
    grown = model.step(model.branch(state, [0], [(1, 2)]), prompt.actions[None, 2:])
    [rollout] = model.rollouts(grown)
    scorer = ScorerActor(root / "toy", job.reward, job.episodes)
    [group, _] = scorer.score([rollout])
    before = model.rollouts(state)[0].payload.segments[0].places
    places = np.concatenate([np.repeat(before, 2, axis=0), rollout.payload.segments[0].places], axis=1)
    [entire, _] = scorer.score([replace(rollout, start=0, payload=ToyPayload((ToySegment(places, 0),)))])
    for part, all_ in zip(group.scores, entire.scores, strict=True):
        np.testing.assert_allclose(part.per_frame, all_.per_frame[2:], rtol=1e-5)


def test_evaluation_takes_it(job, root, names):
    model = open_world_model(root / "toy", job.rollout)
    reader = PromptReader(job.episodes, model.card.height, model.card.width)
    windows = [
        EvaluationWindow(reader.prompt(name, 4), reader.recorded(name, 4).frames[1:]) for name in names
    ]
    config = EvaluationConfig(bootstrap_resamples=20)
    result = evaluate_rollouts(model, windows, load_lpips("alex"), config, RefreshConfig())
    assert result.metrics.per_frame["psnr"].shape == (2, 4)


def test_the_checks_of_a_job_pass_and_tell_what_is_missing(job, root):
    assert find_fault(Preflight("align", job)) is None
    write_toy(root / "broken")
    (root / "broken" / "world_model.json").write_text('{"kind": "nobody\'s"}')
    broken = job.model_copy(update={"world_model_weights": str(root / "broken")})
    fault = find_fault(Preflight("align", broken))
    assert isinstance(fault, UserError)
    assert "unknown world model" in fault.line()


def test_a_model_of_two_cameras_gets_both_and_is_scored_on_both(job, root, names, tmp_path):
    """The same job, but that every episode has a second camera, which sees the first one's pictures upside down."""
    episodes = (square_episode(number) for number in range(EPISODES))
    both = (replace(e, frames={**e.frames, "below": e.frames["front"][:, ::-1]}) for e in episodes)
    write_store(both, tmp_path / "store", held_out_fraction=0.3)
    config = job.episodes.model_copy(update={"store": str(tmp_path / "store")})
    write_toy(tmp_path / "toy", views=2)
    reader = PromptReader(config, 32, 32, views=2)
    recorded = reader.recorded(names[0], 4)
    assert recorded.views == ("front", "below")
    assert recorded.frames.shape == (5, 2, 32, 32, 3)
    start = reader.prompt(names[0], 4).start
    assert np.abs(start[0, ::-1].astype(int) - start[1]).mean() < 4  # the store's video is lossy
    turned = PromptReader(config.model_copy(update={"view": "below"}), 32, 32, views=2)
    np.testing.assert_array_equal(turned.prompt(names[0], 4).start, start[::-1])
    rollouts, _ = RolloutActor(tmp_path / "toy", job.rollout, config).rollout(names, SEEDS)
    scorer = ScorerActor(tmp_path / "toy", job.reward, config)
    *_, records = scorer.score(rollouts)
    assert all(isinstance(score, Scored) for record in records for score in record.scores)
    with pytest.raises(EpisodeError, match="has views front; the world model predicts 2"):
        PromptReader(job.episodes, 32, 32, views=2).prompt(names[0], 4)
    named = PromptReader(config.model_copy(update={"views": ("below", "front")}), 32, 32, views=2)
    np.testing.assert_array_equal(named.prompt(names[0], 4).start, start[::-1])
    assert named.recorded(names[0], 4).views == ("below", "front")


def test_evaluation_measures_every_view(job, root, tmp_path):
    """A view that is predicted without fault, and one that is all wrong: each has its figures, and the mean of both."""
    write_toy(tmp_path / "toy", views=2)
    model = open_world_model(tmp_path / "toy", job.rollout)
    start = np.zeros((2, 32, 32, 3), np.uint8)
    actions = np.zeros((4, 2), np.float32)
    prompts = [Prompt(f"w{number}", start, start, actions) for number in range(2)]
    made = [model.decode(group)[0] for group in model.rollout(prompts, [(0,)] * 2)]
    for frames in made:
        frames[:, 1] = 255 - frames[:, 1]
    windows = [
        EvaluationWindow(prompt, real, ("front", "hand")) for prompt, real in zip(prompts, made, strict=True)
    ]
    config = EvaluationConfig(bootstrap_resamples=20)
    lpips = load_lpips("random-alex")
    metrics = evaluate_rollouts(model, windows, lpips, config, RefreshConfig()).metrics
    assert list(metrics.views) == ["front", "hand"]
    assert metrics.views["front"].per_frame["mse"].max() == 0
    inverted = (made[0][:, 1] / 255.0 * 2 - 1) ** 2
    np.testing.assert_allclose(
        metrics.views["hand"].per_frame["mse"][0], inverted.mean(axis=(1, 2, 3)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics.per_frame["mse"], metrics.views["hand"].per_frame["mse"] / 2)
    assert metrics.by_view()["front"]["psnr"] == pytest.approx(100)
    step = one_step(model, windows, lpips, config)
    assert list(step.predicted.views) == list(step.copy_last.views) == ["front", "hand"]
    narrow = EvaluationWindow(prompts[0], made[0][:, :1])
    with pytest.raises(UserError, match="2 views predicted, 1 real"):
        evaluate_rollouts(model, [narrow], lpips, config, RefreshConfig())
