"""The stages of pre-training: what a stage needs, and which function builds its job.

Those of a world model follow from its kind. To pre-train another kind, add its stages here. Nothing else asks which
kind a job is of. The inverse dynamics model is a stage of its own, which runs only where it is named.
Imports no PyTorch.
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

StageName = Literal["tokenizer", "world_model", "inverse_dynamics"]


@dataclass(frozen=True)
class Stage:
    """One training job of a pre-training.

    Attributes:
        job: "module:function" that makes one worker's side from (config, run directory).
        steps: optimizer steps.
        window_frames, windows_per_step: of its training windows.
        action_dims: numbers of an action that the stage is built for, and the setting's name; None where it needs none.
        held_out_frames: of the held-out clips that its result is measured on; None where it is not measured.
    """

    job: str
    steps: Callable[[JobConfig], int]
    window_frames: Callable[[JobConfig], int]
    windows_per_step: Callable[[JobConfig], int]
    action_dims: Callable[[JobConfig], tuple[int, str]] | None = None
    held_out_frames: Callable[[JobConfig], int] | None = None

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
_OF_ITS_OWN: Mapping[StageName, Stage] = {
    "inverse_dynamics": Stage(
        "inverse_stage:inverse_dynamics_job",
        steps=lambda config: config.inverse_dynamics.training.steps,
        window_frames=lambda config: config.inverse_dynamics.network.frames,
        windows_per_step=lambda config: config.inverse_dynamics.training.windows_per_step,
        held_out_frames=lambda config: config.inverse_dynamics.gate.clip_frames,
    ),
}


def stages_of(config: JobConfig) -> dict[StageName, Stage]:
    """The stages of the job's world model, in order."""
    return dict(_STAGES[config.world_model_kind])


def stage_of(config: JobConfig, name: StageName) -> Stage:
    """One stage by its name.

    Raises:
        UserError: a world model of this kind has no such stage.
    """
    stages = {**stages_of(config), **_OF_ITS_OWN}
    if name not in stages:
        raise UserError(
            f"a {config.world_model_kind} world model has no {name}",
            where="--stage",
            remedy=f"its stages: {', '.join(stages)}",
        )
    return stages[name]
