"""Rollout and scorer actors called directly, without Ray."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_job import EPISODES, FRAMES, make_tiny_job, square_episode

from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.episodes.store import write_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.metrics.frame_metrics import ssim, to_images
from roboalign_ray.rewards.group_scorer import choose_best, score_rollout
from roboalign_ray.rewards.protocol import RewardInput, Scored
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.token.rollout import TokenPayload
from roboalign_ray.world_model.token.transformer import load_pretrained

SEEDS = [(1, 2, 3), (4, 5, 6)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_tiny_job(tmp_path_factory.mktemp("job"))


def rollout_actor(job):
    return RolloutActor(Path(job.world_model_weights), job.rollout, job.episodes)


@pytest.fixture(scope="module")
def actor(job):
    return rollout_actor(job)


@pytest.fixture(scope="module")
def scorer(job):
    return ScorerActor(Path(job.world_model_weights), job.reward, job.episodes)


@pytest.fixture(scope="module")
def names(job):
    return schedule_from_store(job.episodes, job.rollout, 0).train(0, 2)


def test_groups_of_tokens_come_back_in_order(actor, names):
    groups, report = actor.rollout(names, SEEDS)
    assert [group.prompt_id for group in groups] == [name.prompt_id for name in names]
    assert [group.seeds for group in groups] == SEEDS
    assert all(group.versions == (0, 0) for group in groups)
    assert report.units == 2 * 3 * 4 * 4
    assert report.failed == {}


def test_same_seeds_same_tokens_in_another_actor_and_company(job, actor, names):
    groups, _ = actor.rollout(names, SEEDS)
    alone, _ = rollout_actor(job).rollout(names[1:], SEEDS[1:])
    np.testing.assert_array_equal(alone[0].payload.tokens, groups[1].payload.tokens)


def test_a_video_shows_the_real_clip_and_the_first_sample_side_by_side(actor, scorer, names):
    groups, _ = actor.rollout(names, SEEDS)
    first, *_ = scorer.score(groups)
    picture = Image.open(io.BytesIO(scorer.video(first)))
    generated = scorer._decoder.decode(groups[0])[0, :, 0]
    real = scorer._reader.recorded(names[0], len(generated)).frames[1:, 0]
    assert picture.n_frames == len(generated) == 4
    for number in range(4):
        picture.seek(number)
        shown = np.array(picture.convert("RGB")).astype(int)
        half = shown.shape[1] // 2
        # 256 colours a frame: close, and closer than the other half is
        assert np.abs(shown[:, :half] - real[number]).mean() < 6
        assert np.abs(shown[:, half:] - generated[number]).mean() < 6
        assert np.abs(real[number].astype(int) - generated[number]).mean() > 12


def test_an_unreadable_prompt_costs_its_own_group_only(actor, names):
    groups, report = actor.rollout([PromptName("toy/none", 0), names[1]], SEEDS)
    assert [group.prompt_id for group in groups] == [names[1].prompt_id]
    assert "toy/none" in report.failed["toy/none@0"].reason


def test_weights_travel_with_the_call_and_mark_the_segments(job, names):
    actor = rollout_actor(job)
    before, _ = actor.rollout(names, SEEDS)
    model, _ = load_pretrained(job.world_model_weights)
    weights = {name: np.asarray(value) for name, value in model.state_dict().items()}
    changed = {name: -value for name, value in weights.items()}
    actor.load_weights(5, changed)
    after, _ = actor.rollout(names, SEEDS, 5, [object()])  # version 5 is there: the reference is not touched
    assert after[0].versions == (5, 5)
    assert not np.array_equal(after[0].payload.tokens, before[0].payload.tokens)
    actor.load_weights(6, weights)
    again, _ = actor.rollout(names, SEEDS, 6)
    np.testing.assert_array_equal(again[0].payload.tokens, before[0].payload.tokens)


def test_older_weights_are_not_taken_unless_the_learner_was_set_back(job, names):
    actor = rollout_actor(job)
    before, _ = actor.rollout(names, SEEDS)
    model, _ = load_pretrained(job.world_model_weights)
    actor.load_weights(3, {name: -np.asarray(value) for name, value in model.state_dict().items()})
    late, _ = actor.rollout(names, SEEDS, 2, [object()])
    assert late[0].versions == (3, 3)
    back, _ = actor.rollout(names, SEEDS, 0, [], 1)
    assert back[0].versions == (0, 0)
    np.testing.assert_array_equal(back[0].payload.tokens, before[0].payload.tokens)


def test_signs_of_life_grow_with_the_work(job, actor, scorer, names):
    fresh = rollout_actor(job)
    assert fresh.beat() == 0
    before, scored_before = actor.beat(), scorer.beat()
    groups, _ = actor.rollout(names, SEEDS)
    assert actor.beat() > before
    scorer.score(groups)
    assert scorer.beat() == scored_before + 2


def test_scores_are_those_of_the_decoded_frames_against_the_store(job, actor, scorer, names):
    groups, _ = actor.rollout(names, SEEDS)
    *scored, records = scorer.score(groups)
    frames = actor._model.decode(groups[0])[:, :, 0]
    episode = square_episode(int(names[0].episode_id[-2:]))
    real = episode.view()[names[0].start + 1 : names[0].start + 5]
    for sample, score in enumerate(scored[0].scores):
        assert isinstance(score, Scored)
        # the store's video is lossy
        expected = float(ssim(to_images(frames[sample]), to_images(real)).mean())
        assert score.components["ssim"] == pytest.approx(expected, abs=0.02)
        assert score.total == pytest.approx(score.components["ssim"] - score.components["lpips"])
    assert records[0].scores == scored[0].scores
    assert records[1].prompt_id == names[1].prompt_id


class Onlooker:
    """A reward that keeps what it is shown."""

    def score(self, inputs: RewardInput) -> list[Scored]:
        self.shown = inputs
        return [Scored(0.0)] * len(inputs.generated)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_reward_is_shown_what_the_episode_knows(stride, job, actor, names, tmp_path):
    states = np.random.default_rng(0).normal(size=(EPISODES, FRAMES, 5)).astype(np.float32)
    known = (replace(square_episode(n), state=states[n]) for n in range(EPISODES))
    write_store(known, tmp_path / "store", held_out_fraction=0.3)
    settings = {"store": str(tmp_path / "store"), "frame_stride": stride}
    scorer = ScorerActor(Path(job.world_model_weights), job.reward, job.episodes.model_copy(update=settings))
    groups, _ = actor.rollout(names, SEEDS)
    name = PromptName("toy/07", 1)
    onlooker = Onlooker()
    group = replace(groups[0], prompt_id=name.prompt_id)
    score_rollout(group, scorer._decoder, scorer._reader, onlooker)
    shown, episode = onlooker.shown, square_episode(7)
    assert shown.fault() is None
    frames = slice(1, 1 + 4 * stride + 1, stride)
    real = np.concatenate([shown.start[None], shown.real])
    assert np.abs(real[:, 0].astype(int) - episode.view()[frames]).mean() < 4  # the store's video is lossy
    np.testing.assert_array_equal(shown.generated, actor._model.decode(groups[0]))
    np.testing.assert_array_equal(
        shown.actions, episode.actions[1 : 1 + 4 * stride].reshape(4, stride, 2).sum(1)
    )
    np.testing.assert_array_equal(shown.proprioception, states[7][frames])
    assert (shown.action_names, shown.action_kinds) == (episode.action_names, episode.action_kinds)
    assert (shown.fps, shown.embodiment, shown.views) == (10.0 / stride, "toy", ("front",))
    assert shown.instruction == "push the square"


def test_one_bad_group_fails_alone(actor, scorer, names):
    groups, _ = actor.rollout(names, SEEDS)
    *scored, _ = scorer.score([replace(groups[0], prompt_id="toy/none@3"), groups[1]])
    assert all(isinstance(score, Failed) and score.kind == "episode" for score in scored[0].scores)
    assert all(isinstance(score, Scored) for score in scored[1].scores)


def test_prompts_hold_the_episodes_frames_and_actions(job, names):
    reader = PromptReader(job.episodes, 32, 32)
    prompt = reader.prompt(names[0], 4)
    episode = square_episode(int(names[0].episode_id[-2:]))
    start = names[0].start
    assert np.abs(prompt.start.astype(int) - episode.view()[start]).mean() < 4
    np.testing.assert_array_equal(prompt.actions, episode.actions[start : start + 4])
    assert prompt.instruction == "push the square"
    with pytest.raises(UserError, match="frames"):
        reader.recorded(PromptName(names[0].episode_id, 8), 4)


def test_a_stride_keeps_every_other_frame_and_sums_the_increments(job):
    reader = PromptReader(job.episodes.model_copy(update={"frame_stride": 2}), 32, 32)
    prompt, episode = reader.prompt(PromptName("toy/03", 1), 3), square_episode(3)
    summed = episode.actions[1:7].reshape(3, 2, 2).sum(1)
    np.testing.assert_array_equal(prompt.actions, summed)
    real = reader.recorded(PromptName("toy/03", 1), 3)
    assert np.abs(real.frames[:, 0].astype(int) - episode.view()[1:8:2]).mean() < 4
    np.testing.assert_array_equal(real.actions, summed)
    assert real.fps == 5.0  # every other frame of 10


def test_a_horizon_longer_than_every_episode_is_told(job):
    with pytest.raises(UserError, match="frames of a window"):
        schedule_from_store(job.episodes, job.rollout.model_copy(update={"horizon": 10}), 0)


def test_missing_weights_are_told_when_getting_ready(job, tmp_path):
    actor = RolloutActor(tmp_path, job.rollout, job.episodes)
    with pytest.raises(UserError):
        actor.ready()


@pytest.mark.parametrize("part", ["tokens", "context", "given"])
def test_a_damaged_token_costs_its_group_its_scores_and_never_reaches_the_learner(actor, scorer, names, part):
    groups, _ = actor.rollout(names, SEEDS)
    first, *later = groups[0].payload.segments
    codes = getattr(first, part).copy()
    codes.flat[3] ^= np.int32(1 << 30)  # a bit turned over on the way: decoding would make a picture of it
    damaged = replace(groups[0], payload=TokenPayload((replace(first, **{part: codes}), *later)))
    *_, records = scorer.score([damaged, groups[1]])
    assert all(
        isinstance(score, Failed) and "outside the 16 codes" in score.reason for score in records[0].scores
    )
    assert all(isinstance(score, Scored) for score in records[1].scores)


class FrameReward:
    """Minus the mean distance to the real frames: what `best` must follow, from pixels alone."""

    def score(self, item: RewardInput) -> list[Scored | Failed]:
        distance = np.abs(item.generated.astype(float) - item.real.astype(float)).mean((1, 2, 3, 4, 5))
        return [Scored(-value) for value in distance.tolist()]


def test_a_name_that_shares_frames_gives_samples_behind_one_history(actor, scorer, names):
    branched = replace(names[0], horizon=4, shared=3)
    groups, report = actor.rollout([branched, names[1]], SEEDS)
    assert [(group.start, group.horizon) for group in groups] == [(3, 1), (0, 4)]
    assert report.units == 3 * 4 + 3 * 4 * 4  # the history is no part of a group
    *scored, records = scorer.score(groups)
    assert records[0].prompt_id == branched.prompt_id
    real = scorer._reader.recorded(branched, 4).frames[4:]
    generated = scorer._decoder.decode(groups[0])
    for sample, score in enumerate(scored[0].scores):
        expected = ssim(to_images(generated[sample, :, 0]), to_images(real[:, 0])).mean()
        assert score.components["ssim"] == pytest.approx(float(expected), rel=1e-4)


def test_the_best_sample_is_the_one_with_the_highest_total(actor, scorer, names):
    groups, _ = actor.rollout(names, SEEDS)
    choose = choose_best(scorer._decoder, scorer._reader, FrameReward())
    expected = [
        int(np.argmax([s.total for s in score_rollout(g, scorer._decoder, scorer._reader, FrameReward())]))
        for g in groups
    ]
    assert choose(groups) == expected

    class Some:
        def __init__(self, *totals):
            self.totals = totals

        def score(self, item):
            return [Failed("lost") if t is None else Scored(t) for t in self.totals]

    def chosen(*totals):
        return choose_best(scorer._decoder, scorer._reader, Some(*totals))(groups[:1])

    assert chosen(None, -3.0, -2.0) == [2]
    assert chosen(float("nan"), 1.0, float("inf")) == [1]
    with pytest.raises(UserError, match=r"no candidate could be scored \(lost\)"):
        chosen(None, None, None)


def test_an_actor_with_a_reward_continues_the_best_candidates(job, names):
    sampled = rollout_actor(job)
    best = RolloutActor(Path(job.world_model_weights), job.rollout, job.episodes, reward=job.reward)
    name = replace(names[0], horizon=4, shared=3)
    one, other = (actor.rollout([name], SEEDS[:1])[0][0] for actor in (sampled, best))
    assert (one.start, one.seeds) == (other.start, other.seeds)
    assert best.rollout([name], SEEDS[:1])[0][0].payload.tokens.tolist() == other.payload.tokens.tolist()
    assert not np.array_equal(one.payload.segments[0].given, other.payload.segments[0].given)
