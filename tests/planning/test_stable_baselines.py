"""Stable-Baselines3 takes the environment as it is: its own checker has no warning, and PPO learns in it."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from toy_planning import columns, picture, toy, toy_options

import roboalign_ray.planning

pytest.importorskip("stable_baselines3", reason="it is in the extra 'dev'")
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor

ID = roboalign_ray.planning.ENVIRONMENT
COLUMN = {"toy_planning:column": {"weight": 1.0}}


class Column(gymnasium.ObservationWrapper):
    """Where the square is, in place of a picture: a network of a few weights then learns in seconds."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.float32([columns(observation[None]) / 32])


def test_its_checker_finds_nothing() -> None:
    """Frames of the shipped model, since SB3 warns of pictures below 36 pixels; actions scaled as it asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, world_model="shipped", horizon=4, reward="judged", disable_env_checker=True)
        check_env(gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), warn=True)


def test_two_thousand_steps_of_ppo_move_the_square_right() -> None:
    options = toy_options(horizon=6, world_model=toy(gain=1.5), image=picture(11), reward=COLUMN)
    env = Monitor(Column(gymnasium.make(ID, **options)))
    agent = PPO("MlpPolicy", env, n_steps=240, batch_size=60, learning_rate=5e-3, seed=0, device="cpu")
    agent.learn(2000)
    earned = env.get_episode_rewards()
    assert len(earned) >= 2000 // 6
    assert np.mean(earned[-40:]) > np.mean(earned[:40]) + 3  # columns at the end of an episode
