"""Builds the reward of a config: built-in parts, installed ones, and those named by module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from roboalign_ray.config import RewardConfig
from roboalign_ray.config.rewards import ExtensionRewardConfig, RewardPartConfig
from roboalign_ray.judge.student.model import Student
from roboalign_ray.plugins import Registry
from roboalign_ray.rewards.extension import (
    ExtensionReward,
    build_extension,
    extension_fault,
    extension_settings,
)
from roboalign_ray.rewards.protocol import Reward, RewardContext
from roboalign_ray.rewards.weighted import WeightedReward

REWARDS: Registry[Callable[..., Any]] = Registry(
    "rewards",
    "reward",
    {
        "fidelity": "roboalign_ray.rewards.fidelity:FidelityReward",
        "judged": "roboalign_ray.rewards.student_judge:JudgedReward",
        "executability": "roboalign_ray.rewards.executability:ExecutabilityReward",
    },
    extension_fault,
)


def build_reward(
    config: RewardConfig, student: Student | None = None, device: torch.device | str = "cpu"
) -> Reward:
    """A single built-in part of weight 1 itself, so that its components keep their names; else the weighted sum.

    Raises:
        UserError: the reward needs a student and there is none, or an extension cannot be found or made.
    """
    context = RewardContext(torch.device(device), student)
    parts = {name: (build_part(name, part, context), part.weight) for name, part in config.parts.items()}
    if len(parts) == 1:
        [(only, weight)] = parts.values()
        if weight == 1.0 and not isinstance(only, ExtensionReward):
            return only
    return WeightedReward(parts)


def check_rewards(config: RewardConfig) -> None:
    """Check that all extensions exist and accept their settings. Runs the named modules.

    Raises:
        UserError: the first error.
    """
    for name, part in config.parts.items():
        if isinstance(part, ExtensionRewardConfig):
            where = f"reward.{name}"
            extension_settings(name, REWARDS.load(name, where), part, where)


def build_part(name: str, part: RewardPartConfig, context: RewardContext) -> Reward:
    """One part alone, without its weight.

    Raises:
        UserError: as `build_reward`.
    """
    where = f"reward.{name}"
    extension = REWARDS.load(name, where)
    if isinstance(part, ExtensionRewardConfig):
        settings = extension_settings(name, extension, part, where)
        return build_extension(name, extension, settings, context)
    return extension.from_context(part, context)  # type: ignore[attr-defined]  # ours have it
