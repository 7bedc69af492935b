"""The stages of pre-training by kind of world model: what a stage needs, and which function builds its job.

To pre-train another kind, add its stages here. Nothing else asks which kind a job is of. Imports no PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.train.train_job import TrainJob

StageName = Literal["tokenizer", "world_model"]


@dataclass(frozen=True)
class Stage:
    """One training job of a pre-training.

    Attributes:
        job: "module:function" that makes one worker's side from (config, run directory).
        steps: optimizer steps.
        window_frames, windows_per_step: of its training windows.
        action_dims: numbers of an action that the stage is built for, and the setting's name; None where it needs none.
    """

    job: str
    steps: Callable[[JobConfig], int]
    window_frames: Callable[[JobConfig], int]
    windows_per_step: Callable[[JobConfig], int]
    action_dims: Callable[[JobConfig], tuple[int, str]] | None = None

    def build(self, config: JobConfig, out: Path) -> TrainJob:
        """One worker's side of the job."""
        module, _, name = self.job.partition(":")
        return getattr(importlib.import_module(f"roboalign_ray.pipelines.train.{module}"), name)(config, out)


_TOKEN: Mapping[StageName, Stage] = {
    "tokenizer": Stage(
        "token_stages:tokenizer_job",
        steps=lambda config: config.tokenizer_training.steps,
        window_frames=lambda config: config.tokenizer_training.frames_per_window,
        windows_per_step=lambda config: config.tokenizer_training.windows_per_step,
    ),
    "world_model": Stage(
        "token_stages:world_model_job",
        steps=lambda config: config.pretraining.steps,
        window_frames=lambda config: config.world_model.window_frames,
        windows_per_step=lambda config: config.pretraining.windows_per_step,
        action_dims=lambda config: (config.world_model.action_dims, "world_model.action_dims"),
    ),
}
_DIFFUSION: Mapping[StageName, Stage] = {
    "world_model": Stage(
        "diffusion_stage:denoiser_job",
        steps=lambda config: config.diffusion.training.steps,
        window_frames=lambda config: config.diffusion.window_frames,
        windows_per_step=lambda config: config.diffusion.training.windows_per_step,
        action_dims=lambda config: (
            config.diffusion.denoiser.action_dims,
            "diffusion.denoiser.action_dims",
        ),
    ),
}
_STAGES = {"token": _TOKEN, "diffusion": _DIFFUSION}


def stages_of(config: JobConfig, named: StageName | None = None) -> dict[StageName, Stage]:
    """The stages of a job in order, or the named one alone.

    Raises:
        UserError: a world model of this kind has no such stage.
    """
    stages = _STAGES[config.world_model_kind]
    if named is None:
        return dict(stages)
    if named not in stages:
        raise UserError(
            f"a {config.world_model_kind} world model has no {named}",
            where="--stage",
            remedy=f"its stages: {', '.join(stages)}",
        )
    return {named: stages[named]}
