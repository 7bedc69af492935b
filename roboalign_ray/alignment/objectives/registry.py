"""Objectives by name: `alignment.objective` of a profile."""

from __future__ import annotations

from typing import Any

from roboalign_ray.alignment.objectives.protocol import Objective
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.plugins import Registry, lacks

OBJECTIVES: Registry[type[Objective[Any]]] = Registry(
    "objectives",
    "objective",
    {
        "grpo": "roboalign_ray.alignment.objectives.grpo:GrpoObjective",
        "diffusion_nft": "roboalign_ray.alignment.objectives.diffusion:DiffusionNftObjective",
        "flow_grpo": "roboalign_ray.alignment.objectives.flow_objective:FlowGrpoObjective",
        "softmax_contrastive": "roboalign_ray.alignment.objectives.diffusion:SoftmaxContrastiveObjective",
    },
    lacks("open_policy", "begin", "prepare", "loss", "finish", "published", "state_dict", "load_state_dict"),
)


def build_objective(config: AlignmentConfig, off_policy: OffPolicyConfig | None = None) -> Objective[Any]:
    """The objective that a profile names. Its auxiliary policies are created by `begin`.

    Args:
        config: contains the objective's name.
        off_policy: correction for samples of older weights.

    Raises:
        UserError: the name is unknown, or the object is not an objective.
    """
    return OBJECTIVES.load(config.objective, "alignment.objective")(config, off_policy)
