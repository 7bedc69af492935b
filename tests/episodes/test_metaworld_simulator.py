"""The simulator as something to search in: states are restored bit for bit, and success belongs to the next frame."""

from __future__ import annotations

import numpy as np
import pytest

from roboalign_ray.config import SimulationConfig
from roboalign_ray.episodes.sources.metaworld_simulator import MetaworldSimulator
from roboalign_ray.episodes.sources.opengl import require_simulator
from roboalign_ray.foundation.failures import UserError

# Doors and drawers move on joints, pucks freely; window-close turns its object's rest position into the goal.
TASKS = ("drawer-close", "push", "window-close", "faucet-open")
CONFIG = SimulationConfig(steps_per_frame=16, height=24, width=24, supersample=1, views=("front", "wrist"))


@pytest.fixture(scope="module", params=TASKS)
def simulator(request) -> MetaworldSimulator:
    try:
        require_simulator()
    except UserError as error:
        pytest.skip(str(error))
    return MetaworldSimulator(request.param, CONFIG)


def play(simulator: MetaworldSimulator, observation: np.ndarray, actions: np.ndarray) -> list[np.ndarray]:
    seen = []
    for action in actions:
        observation, _, flags = simulator.interval(observation, simulator.hold(action), False)
        labels = simulator.labels.read()
        seen += [observation, flags, simulator.frame("front"), simulator.frame("wrist"), *labels.values()]
    return seen


def test_steps_after_a_restore_repeat_bit_for_bit(simulator: MetaworldSimulator) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (6, 4)) * [0.16, 0.16, 0.16, 1.0]
    observation = simulator.reset(3)
    observation, *_ = simulator.interval(observation, simulator.hold(actions[0]), False)
    state, frame = simulator.save(), simulator.frame("front")
    first = play(simulator, observation, actions[1:4])
    play(simulator, observation, -actions[4:])  # elsewhere
    simulator.restore(state)
    np.testing.assert_array_equal(simulator.frame("front"), frame)
    again = play(simulator, observation, actions[1:4])
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_looking_whether_it_is_solved_changes_nothing(simulator: MetaworldSimulator) -> None:
    action = np.array([[0.1, 0.05, -0.1, 1.0]])
    observation = simulator.reset(4)
    plain = play(simulator, observation, action)
    observation = simulator.reset(4)
    assert not simulator.is_solved()
    for one, other in zip(plain, play(simulator, observation, action), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_action_is_held_and_adds_up_to_itself(simulator: MetaworldSimulator) -> None:
    observation = simulator.reset(0)
    asked = np.float32([0.08, -0.16, 0.04, -1.0])
    _, done, flags = simulator.interval(observation, simulator.hold(asked), False)
    np.testing.assert_allclose(done, asked, atol=1e-6)
    assert flags.shape == (16,)
    _, done, _ = simulator.interval(observation, simulator.hold(2 * asked), False)
    np.testing.assert_allclose(done[:3], [0.16, -0.16, 0.08], atol=1e-6)  # a step moves a centimetre at most


def test_the_expert_solves_it_and_the_flags_say_when(simulator: MetaworldSimulator) -> None:
    observation, policy, seen = simulator.reset(1), simulator.policy(), []
    for _ in range(20):
        observation, _, flags = simulator.interval(observation, lambda o, done: policy(o), False)
        seen.append(flags)
        if flags[-1]:
            break
    assert np.concatenate(seen).any()
    assert simulator.is_solved()
