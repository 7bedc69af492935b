"""The diffusion world model as the registry sees it: a denoiser with the description of its noise and its actions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from roboalign_ray.config import JobConfig, RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.decoder import DiffusionDecoder, diffusion_card
from roboalign_ray.world_model.diffusion.engine import DiffusionEngine
from roboalign_ray.world_model.diffusion.files import (
    DESCRIPTION,
    check_denoiser_files,
    load_denoiser,
    load_weights,
    read_denoiser,
)
from roboalign_ray.world_model.diffusion.rollout import DiffusionPayload
from roboalign_ray.world_model.protocol import ModelCard
from roboalign_ray.world_model.refresh import check_refresh


class DiffusionKind:
    """Implements `registry.WorldModelKind`. It has no tokenizer, and does not look at one."""

    payload = DiffusionPayload

    @classmethod
    def check(cls, folder: Path, *, tokenizer: Path | None, config: JobConfig | None = None) -> ModelCard:
        """That the folder holds a whole denoiser; and the one that the job would pre-train, where it would train one.

        Raises:
            UserError: it does not, or is another.
        """
        del tokenizer
        found = check_denoiser_files(folder)
        pretrains = config is not None and config.world_model_kind == DiffusionPayload.kind
        if config is not None and pretrains:
            had, wanted = (
                {**part.denoiser.public(), "residual_scale": part.noise.residual_scale}
                for part in (found, config.diffusion)
            )
            differing = [f"{key} {had[key]} != {wanted[key]}" for key in had if had[key] != wanted[key]]
            if differing:
                raise UserError(
                    f"holds another denoiser ({', '.join(differing)})",
                    where=str(folder / DESCRIPTION),
                    remedy="set diffusion.denoiser and diffusion.noise to what the model was trained with",
                )
        return diffusion_card(found)

    @classmethod
    def open_model(
        cls, folder: Path, rollout: RolloutConfig, *, tokenizer: Path | None, device: str | None
    ) -> DiffusionEngine:
        """The engine, as weight version 0.

        Raises:
            UserError: the folder cannot be read, or the model cannot do what `rollout` asks for.
        """
        del tokenizer
        check_refresh(rollout.refresh, diffusion_card(read_denoiser(folder)))
        network, described = load_denoiser(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return DiffusionEngine(network, described, rollout)

    @classmethod
    def open_decoder(cls, folder: Path, *, tokenizer: Path | None, device: str | None) -> DiffusionDecoder:
        """What unpacks the frames of rollouts; no weights are read.

        Raises:
            UserError: the folder's description cannot be read.
        """
        del tokenizer, device
        return DiffusionDecoder(diffusion_card(read_denoiser(folder)))

    @classmethod
    def read_weights(cls, folder: Path) -> Mapping[str, Tensor]:
        """The denoiser's weights by name.

        Raises:
            UserError: the folder cannot be read.
        """
        return load_weights(folder)
