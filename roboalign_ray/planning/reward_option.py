"""The reward of an environment: a name, a table of weighted parts, a module's attribute, or an object."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from roboalign_ray.config import RewardConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import validated
from roboalign_ray.judge.student.model import Student
from roboalign_ray.planning.scoring import ClipScorer
from roboalign_ray.rewards.protocol import Reward
from roboalign_ray.rewards.registry import build_reward, check_rewards
from roboalign_ray.world_model.protocol import ModelCard

_WHERE = "reward"

RewardOption = str | Mapping[str, Mapping[str, Any]] | Reward


def open_scorer(
    option: RewardOption | None,
    card: ModelCard,
    *,
    goal: np.ndarray | None,
    judge: str | Path,
    device: str | None = None,
) -> ClipScorer | None:
    """The scorer of a reward; None for no reward.

    Args:
        option: "judged", "fidelity", an installed reward's name or "module:attribute"; or parts by name, as a profile
            has them ({"judged": {"weight": 1, "uncertainty_penalty": 0.5}}); or an object with `score`.
        goal: uint8 [V, H, W, 3]; for rewards that compare with real frames.
        judge: folder of the student, or "shipped".
        device: of the reward's networks; None takes the CPU.

    Raises:
        UserError: no such reward, its settings are wrong, or the goal or the student that it needs is missing.
    """
    if option is None:
        if goal is not None:
            raise UserError("no reward looks at it", where="goal", remedy="set reward='fidelity'")
        return None
    if callable(getattr(option, "score", None)):
        return ClipScorer(cast(Reward, option), card, goal)
    config = _config(option)
    check_rewards(config)
    if "fidelity" in config.parts and goal is None:
        raise UserError("'fidelity' compares with a goal image", where=_WHERE, remedy="give goal=…")
    student = Student.load(_student_folder(judge)) if config.needs_judge else None
    return ClipScorer(build_reward(config, student, device or "cpu"), card, goal)


def _config(option: Any) -> RewardConfig:
    if isinstance(option, str):
        parts: Any = {option: {"weight": 1.0}}
    elif isinstance(option, Mapping):
        parts = {name: dict(part) if isinstance(part, Mapping) else part for name, part in option.items()}
    else:
        kind = type(option).__name__
        raise UserError(
            f"is of type {kind}", where=_WHERE, remedy="give a name, a table of parts or a Reward"
        )
    return validated(parts, RewardConfig, _WHERE, where=_WHERE)


def _student_folder(judge: str | Path) -> Path:
    if str(judge) == "shipped":
        return Path(str(importlib.resources.files("roboalign_ray") / "assets" / "student"))
    return Path(judge)
