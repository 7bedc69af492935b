"""The reward that a config describes."""

from __future__ import annotations

import torch

from roboalign_ray.config import RewardConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.student.model import Student
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import Reward
from roboalign_ray.rewards.student_judge import PART, JudgedReward
from roboalign_ray.rewards.weighted import WeightedReward


def build_reward(
    config: RewardConfig, student: Student | None = None, device: torch.device | str = "cpu"
) -> Reward:
    """One part at weight 1 as it is, so that its components keep their own names; else the weighted sum.

    Raises:
        UserError: the student has a say, and there is none.
    """
    weights, parts = config.weights, {}
    if weights.fidelity:
        fidelity: Reward = FidelityReward(config.fidelity, device=device)
        parts["fidelity"] = (fidelity, weights.fidelity)
    if weights.judged:
        if student is None:
            raise UserError("the reward needs a student", where="reward.weights.judged")
        parts[PART] = (JudgedReward(student.to(device).eval(), config.judged), weights.judged)
    if len(parts) == 1:
        [(only, weight)] = parts.values()
        if weight == 1.0:
            return only
    return WeightedReward(parts)
