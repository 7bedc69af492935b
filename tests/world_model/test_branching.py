"""Rollouts behind a self-generated history: the history is one sample's, its samples share it, and the best may win."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_denoiser import SIDE, VIEWS, write_tiny_denoiser
from tiny_job import SIZE, make_tiny_job

from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.alignment.advantages import group_advantages
from roboalign_ray.alignment.objectives.token_batch import micro_batches, training_sequences
from roboalign_ray.alignment.objectives.token_policy import open_token_policy, predict_batch
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import RolloutConfig
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.branching import branched_rollouts
from roboalign_ray.world_model.protocol import Prompt, Rollout, WorldModel
from roboalign_ray.world_model.registry import open_world_model

SEEDS = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


@pytest.fixture(scope="module", params=["token", "diffusion"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "token":
        job = make_tiny_job(folder)
        return open_world_model(job.world_model_weights, job.rollout)
    rollout = RolloutConfig.model_validate({"refresh": {"policy": "none"}})
    return open_world_model(write_tiny_denoiser(folder / "denoiser"), rollout, device="cpu")


@pytest.fixture(scope="module")
def prompts(model: WorldModel) -> list[Prompt]:
    generator = np.random.default_rng(0)
    views, side = (1, SIZE) if model.card.kind == "token" else (VIEWS, SIDE)

    def prompt(number: int, horizon: int) -> Prompt:
        frame = generator.integers(0, 256, (views, side, side, 3), dtype=np.uint8)
        actions = generator.integers(-2, 3, (horizon, 2)).astype(np.float32)
        return Prompt(f"p{number}", frame, frame, actions)

    return [prompt(0, 5), prompt(1, 2), prompt(2, 5)]


def same(one: Rollout, other: Rollout) -> bool:
    told = [(r.prompt_id, r.seeds, r.start, r.horizon, r.versions) for r in (one, other)]
    arrays = [r.payload.to_arrays()[1] for r in (one, other)]
    return told[0] == told[1] and all(np.array_equal(v, arrays[1][k]) for k, v in arrays[0].items())


def test_samples_continue_one_sample(model: WorldModel, prompts: list[Prompt]) -> None:
    made = branched_rollouts(model, prompts, [3, 1, 3], SEEDS)
    assert [(r.start, r.horizon, r.seeds) for r in made] == [
        (3, 2, SEEDS[0]),
        (1, 1, SEEDS[1]),
        (3, 2, SEEDS[2]),
    ]
    assert len({frames.tobytes() for frames in model.decode(made[0])}) == 3
    # Whatever was beside it, a group is what the steps give by hand, from any one history.
    alone = branched_rollouts(model, prompts[2:], [3], SEEDS[2:])[0]
    assert same(alone, made[2])


def test_the_history_is_not_one_of_the_samples_own(model: WorldModel, prompts: list[Prompt]) -> None:
    """Its seed is another, and follows from theirs."""
    whole = model.rollout([prompts[0]], [SEEDS[0]])
    histories = [frames[:3] for frames in model.decode(whole[0])]
    first, second = (_history(model, prompts[0], seeds) for seeds in (SEEDS[0], (1, 20, 30)))
    assert np.array_equal(first, second)  # the first seed makes it
    assert not np.array_equal(first, _history(model, prompts[0], SEEDS[1]))
    assert not any(np.array_equal(first, other) for other in histories)


def _history(model: WorldModel, prompt: Prompt, seeds: tuple[int, ...]) -> np.ndarray:
    """The shared frames, seen while they are made."""
    seen: list[np.ndarray] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def branch(self, state: object, rows: object, own: object) -> object:
            seen.append(model.frames(state))
            return model.branch(state, rows, own)  # type: ignore[arg-type]

    branched_rollouts(Watched(), [prompt], [3], [seeds])  # type: ignore[arg-type]
    assert seen[0].shape[:2] == (1, 3)
    return seen[0]


def test_without_shared_frames_it_is_a_rollout(model: WorldModel, prompts: list[Prompt]) -> None:
    made = branched_rollouts(model, prompts, [0, 0, 3], SEEDS)
    whole = model.rollout(prompts[:2], SEEDS[:2])
    assert all(same(one, other) for one, other in zip(made, whole, strict=False))
    assert made[2].start == 3


def test_the_chosen_sample_of_each_clip_is_continued(model: WorldModel, prompts: list[Prompt]) -> None:
    seen: list[list[Rollout]] = []

    def choose(groups: list[Rollout]) -> list[int]:
        seen.append(list(groups))
        return [2, 1]

    some, seeds = [prompts[0], prompts[2]], [SEEDS[0], SEEDS[2]]
    made = branched_rollouts(model, some, [4, 4], seeds, choose=choose)  # type: ignore[arg-type]
    assert [[(r.start, r.horizon) for r in groups] for groups in seen] == [
        [(first, 1)] * 2 for first in range(4)
    ]
    drawn = [seed for groups in seen for r in groups for seed in r.seeds] + [s for r in made for s in r.seeds]
    assert len(set(drawn)) == len(drawn) == 5 * 2 * 3  # no clip has the noise of another
    assert [r.seeds for r in made] == seeds
    # By hand: the chosen rows, clip after clip.
    actions = np.stack([prompt.actions for prompt in some])
    state = model.begin(some, [r.seeds for r in seen[0]])
    for clip in range(4):
        state = model.step(state, actions[:, clip : clip + 1])
        following = [r.seeds for r in seen[clip + 1]] if clip < 3 else seeds
        state = model.branch(state, [2, 3 + 1], following)
    expected = model.rollouts(model.step(state, actions[:, 4:]))
    assert all(same(one, other) for one, other in zip(made, expected, strict=True))


def test_what_does_not_fit_is_refused(model: WorldModel, prompts: list[Prompt]) -> None:
    with pytest.raises(UserError, match="prompt 'p0': 5 shared frames of 5"):
        branched_rollouts(model, prompts[:1], [5], SEEDS[:1])
    with pytest.raises(UserError, match="2 shared lengths and 1 tuples of seeds for 1 prompts"):
        branched_rollouts(model, prompts[:1], [1, 2], SEEDS[:1])
    with pytest.raises(UserError, match="3 shared frames are no whole number of clips of 2"):
        branched_rollouts(model, prompts[:1], [3], SEEDS[:1], choose=lambda groups: [0])
    assert branched_rollouts(model, [], [], []) == []


def test_samples_of_a_token_model_can_be_trained_on(tmp_path: Path) -> None:
    """A forward pass behind the shared history gives the log-probabilities that sampling recorded."""
    job = make_tiny_job(tmp_path)
    folder = Path(job.world_model_weights)
    actor = RolloutActor(folder, job.rollout, job.episodes)
    names = [PromptName("toy/01", 1, horizon, shared) for horizon, shared in ((2, 1), (4, 3))]
    groups, _ = actor.rollout(names, [(1, 2, 3), (4, 5, 6)])
    policy = open_token_policy(folder)
    scored = [ScoredGroup(group, (Scored(0.1), Scored(0.5), Scored(0.4))) for group in groups]
    advantages = [group_advantages(group.scores) for group in scored]
    sequences = training_sequences(scored, advantages, policy.layout)
    assert [sequence.generated for sequence in sequences] == [1] * 6
    for batch in micro_batches(sequences, 10_000):
        np.testing.assert_allclose(predict_batch(policy, batch)[0].detach(), batch.behaviour, atol=1e-4)
