"""Parts of the reward in a report: their scores of the rollouts before and after alignment.

Fidelity follows from the measured curves, and the judges of the report score as the student does. All other parts, such
as those from outside this package, are built and called here.
"""

from __future__ import annotations

import numpy as np
import torch

from roboalign_ray.evaluation.protocols import Scorer
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.cluster.weight_folders import student_folder
from roboalign_ray.pipelines.evaluate.job import Bench
from roboalign_ray.rewards.group_scorer import reward_input
from roboalign_ray.rewards.protocol import RewardContext, Scored
from roboalign_ray.rewards.registry import build_part
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import Rollout

_SHOWN_OTHERWISE = ("fidelity", "judged")


def part_scorer(bench: Bench) -> Scorer | None:
    """Scores samples with the other parts of the reward, without their weights; None if there are none.

    Raises:
        UserError: a part cannot be found or made.
    """
    config, card = bench.config, bench.decoder.card
    parts = {name: part for name, part in config.reward.parts.items() if name not in _SHOWN_OTHERWISE}
    if not parts:
        return None
    device = torch.device(bench.device)
    student = Student.load(student_folder(config)).to(device) if config.reward.needs_judge else None
    context = RewardContext(device, student)
    rewards = {name: build_part(name, part, context) for name, part in parts.items()}
    reader = PromptReader(config.episodes, card.height, card.width, card.views)

    def scores(rollout: Rollout, frames: np.ndarray) -> dict[str, np.ndarray]:
        inputs = reward_input(rollout, frames, reader)
        return {
            name: np.array(
                [score.total if isinstance(score, Scored) else np.nan for score in reward.score(inputs)]
            )
            for name, reward in rewards.items()
        }

    return scores
