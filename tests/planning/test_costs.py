"""Costs in a world model: what they add up to, what they read, and that a plan in the toy world reaches its goal."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from toy_planning import BOUNDS, columns, moves, picture, token_options, toy, toy_options

from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.planning.costs import GoalTerm, Imagined, ModelCost, RewardTerm
from roboalign_ray.planning.plan import plan_actions
from roboalign_ray.planning.scoring import ClipScorer
from roboalign_ray.planning.vector_env import WorldModelVectorEnv
from roboalign_ray.rewards.protocol import RewardInput, Scored


class Asked:
    """A world model, and what was asked of it."""

    def __init__(self, model) -> None:
        self.model, self.calls = model, []

    def __getattr__(self, name):
        found = getattr(self.model, name)
        if name not in ("step", "frames", "branch"):
            return found

        def call(*arguments):
            answer = found(*arguments)
            self.calls.append((name, answer.shape[1] if name == "frames" else None))
            return answer

        return call


def begun(steps: int = 0, **options) -> WorldModelVectorEnv:
    envs = WorldModelVectorEnv(2, **toy_options(horizon=20, **options))
    envs.reset(seed=0)
    for number in range(steps):
        envs.step(moves(number, 2))
    return envs


def last_column(imagined: Imagined) -> np.ndarray:
    return columns(imagined.last_frame[:, 0]).astype(float)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_cost_is_that_of_what_the_environment_would_show(steps) -> None:
    """Each candidate against a branch that is stepped through Gymnasium's own interface."""
    envs = begun(steps)
    candidates = moves(50, 4, 5)
    cost = ModelCost(envs.setup.model, {"column": (last_column, 1.0)})
    state = envs.planning_state(1)
    costs = cost(state, candidates, 9)
    seed = int(np.random.default_rng(9).integers(2**63, size=1)[0])
    for candidate, told in zip(candidates, costs, strict=True):
        model = envs.setup.model
        after = model.step(model.branch(state.state, [state.row], [(seed,)]), candidate[None])
        assert columns(model.frames(after)[0, -1, 0]) == told
    np.testing.assert_array_equal(cost(state, candidates, 9), costs)
    assert not np.array_equal(cost(state, candidates, 10), costs)


@pytest.mark.parametrize("kind", ["toy", "token"])
def test_identical_candidates_have_identical_costs(kind, token_job) -> None:
    options = toy_options() if kind == "toy" else token_options(token_job)
    envs = WorldModelVectorEnv(1, **options)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    goal = np.zeros(envs.planning_state().clip.start.shape, np.uint8)
    cost = ModelCost(envs.setup.model, {"goal": (GoalTerm(goal), 1.0)}, samples=2)
    one = np.stack([envs.single_action_space.sample() for _ in range(3)])
    other = np.stack([envs.single_action_space.sample() for _ in range(3)])
    costs = cost(envs.planning_state(), np.stack([one, other, one, other, one]), 1)
    assert len(set(costs[[0, 2, 4]])) == 1
    assert costs[1] == costs[3]


def test_only_what_a_term_asks_for_is_computed() -> None:
    envs = begun(3)
    asked, state, candidates = Asked(envs.setup.model), envs.planning_state(), moves(1, 3, 4)

    def cost(term):
        asked.calls.clear()
        ModelCost(asked, {"term": (term, 1.0)})(state, candidates, 0)
        return asked.calls

    assert cost(lambda imagined: imagined.actions.sum(axis=(1, 2))) == []
    assert cost(lambda imagined: imagined.rollout.payload.segments[0].places[:, -1]) == [
        ("branch", None),
        ("step", None),
    ]
    assert cost(last_column)[-1] == ("frames", 1)
    assert cost(lambda imagined: imagined.frames.mean(axis=(1, 2, 3, 4, 5)))[-1] == ("frames", 4)


def test_blocks_samples_and_weights() -> None:
    envs = begun(1)
    model, state, candidates = envs.setup.model, envs.planning_state(), moves(2, 7, 3)
    terms = {"column": (last_column, 2.0), "still": (lambda i: np.abs(i.actions).sum(axis=(1, 2)), 0.5)}
    whole = ModelCost(model, terms, samples=3)(state, candidates, 4)
    np.testing.assert_allclose(ModelCost(model, terms, samples=3, rows=6)(state, candidates, 4), whole)
    seeds = np.random.default_rng(4).integers(2**63, size=3)
    for number, candidate in enumerate(candidates):
        ends = [model.step(model.branch(state.state, [0], [(int(s),)]), candidate[None]) for s in seeds]
        seen = [columns(model.frames(end)[0, -1, 0]) for end in ends]
        assert whole[number] == pytest.approx(2 * np.mean(seen) + 0.5 * np.abs(candidate).sum())


def test_a_reward_of_clips_sees_history_and_candidate_with_its_actions() -> None:
    seen: list[RewardInput] = []

    class Spy:
        def score(self, inputs):
            seen.append(inputs)
            return [Scored(1.5)] * len(inputs.generated)

    envs = begun(2, reward={"toy_planning:column": {"weight": 1.0}})
    state, candidates = envs.planning_state(), moves(3, 2, 3)
    scorer = ClipScorer(Spy(), envs.setup.card)
    costs = ModelCost(envs.setup.model, {"r": (RewardTerm(scorer), 1.0)})(state, candidates, 0)
    assert costs.tolist() == [-1.5, -1.5]
    assert [inputs.generated.shape[:2] for inputs in seen] == [(1, 5), (1, 5)]
    for inputs, candidate in zip(seen, candidates, strict=True):
        np.testing.assert_array_equal(inputs.actions, np.concatenate([state.clip.actions, candidate]))
        np.testing.assert_array_equal(inputs.generated[0, :2], state.clip.frames)
        np.testing.assert_array_equal(inputs.start, picture(10))


def test_a_row_that_cannot_be_scored_has_no_cost() -> None:
    class Picky:
        def score(self, inputs):
            return [Failed("no")] * len(inputs.generated)

    envs = begun()
    cost = ModelCost(envs.setup.model, {"r": (RewardTerm(ClipScorer(Picky(), envs.setup.card)), 1.0)})
    assert np.isinf(cost(envs.planning_state(), moves(0, 2, 3), 0)).all()
    with pytest.raises(UserError, match="judges clips"):
        RewardTerm(ClipScorer(Picky(), envs.setup.card), last=True)


@pytest.mark.parametrize("planner", ["cem", "mppi", "refine"])
def test_plans_reach_a_goal_column(planner) -> None:
    """From column 10 to 18, by plans that are carried out for two steps and made again from what is left."""
    goal = picture(18)
    env = gymnasium.make("RoboAlign/WorldModel-v0", **toy_options(world_model=toy(gain=3.0), horizon=20))
    env.reset(seed=3)
    warm, settings = None, {"candidates": 32, "iterations": 3, "knots": 2}
    for number in range(4):
        found = plan_actions(
            env, planner, horizon=4, seed=number, warm=warm, cost=GoalTerm(goal), samples=2, **settings
        )
        for action in found.actions[:2]:
            seen, *_ = env.step(action)
        warm = found.rest(2)
    # The toy's noise is up to one column a step, and nobody can plan it away.
    assert abs(int(columns(seen)) - 18) <= 3


def test_the_environments_reward_is_the_cost_where_none_is_given() -> None:
    """How far right the square is: the best plan pushes it there all the time."""
    envs = begun(reward={"toy_planning:column": {"weight": 1.0}}, world_model=toy(gain=2.0))
    found = plan_actions(envs, row=1, horizon=3, candidates=48, iterations=4, seed=1, knots=1)
    assert found.actions[:, 1].min() > 0.7
    assert found.cost <= -14
    named = plan_actions(envs, horizon=2, candidates=4, iterations=1, cost="test_costs:last_column")
    assert named.evaluated == 4


FAULTS = {
    "no reward and no cost": (lambda envs: plan_actions(envs), "the environment has no reward"),
    "a cost that is no function": (lambda envs: plan_actions(envs, cost=3), "not a function"),
    "no such cost": (lambda envs: plan_actions(envs, cost="toy_planning:colum"), "did you mean 'column'"),
    "another environment": (lambda envs: plan_actions(object()), "make RoboAlign/WorldModel-v0"),
    "no such row": (lambda envs: plan_actions(envs, row=2, cost=last_column), "no sub-environment 2 among 2"),
    "no samples": (lambda envs: plan_actions(envs, cost=last_column, samples=0), "samples: is 0"),
    "a term of another shape": (
        lambda envs: plan_actions(envs, cost=lambda imagined: np.zeros(3)),
        "gave (3,) for 64 rows",
    ),
    "no terms": (lambda envs: ModelCost(envs.setup.model, {}), "has no term"),
    "a weight of nothing": (
        lambda envs: ModelCost(envs.setup.model, {"x": (last_column, 0)}),
        "weight of 'x'",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_does_not_fit_is_told_in_one_line(kind) -> None:
    ask, expected = FAULTS[kind]
    with pytest.raises(UserError) as caught:
        ask(begun())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bounds_are_the_environments() -> None:
    envs = WorldModelVectorEnv(1, **toy_options(action_bounds=([0, 0.25], [0, 0.5])))
    envs.reset(seed=0)
    found = plan_actions(envs, cost=last_column, horizon=3, candidates=8)
    assert (found.actions[:, 0] == 0).all()
    assert ((found.actions[:, 1] >= 0.25) & (found.actions[:, 1] <= 0.5)).all()
    assert BOUNDS[0] == [-1.0, -1.0]
