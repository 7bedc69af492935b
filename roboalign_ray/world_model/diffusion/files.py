"""The folder of a diffusion world model.

world_model/
  world_model.json     {"kind": "diffusion"}
  denoiser.json        format, network, noise
  model.safetensors    weights by name, float32, float16 or bfloat16
  action_card.json     what the actions mean; its percentiles scale them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from roboalign_ray.config.diffusion import DenoiserConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ACTION_CARD, ActionCard
from roboalign_ray.foundation.failures import ReportedError, UserError, first_line, raise_if_host
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.readers import read_object, validated
from roboalign_ray.foundation.weight_sync.files import check_weights_file
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.registry import write_description

DIFFUSION = "diffusion"
DESCRIPTION = "denoiser.json"
WEIGHTS = "model.safetensors"
_WHAT = "description of a denoiser"


class DenoiserDescription(BaseModel):
    """What `denoiser.json` holds.

    Attributes:
        format: of the folder.
        denoiser: the network and what it sees.
        noise: of training and sampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    denoiser: DenoiserConfig
    noise: NoiseConfig


@dataclass(frozen=True)
class DenoiserFolder:
    """A diffusion world model without its weights.

    Attributes:
        denoiser, noise: as `denoiser.json` says.
        card: what the actions mean.
        scaling: of the actions, by the card.
    """

    denoiser: DenoiserConfig
    noise: NoiseConfig
    card: ActionCard
    scaling: ActionScaling


def save_denoiser(
    folder: Path,
    network: Denoiser,
    noise: NoiseConfig,
    card: ActionCard,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a folder that `load_denoiser` reads.

    Args:
        dtype: type of the weights in the file.

    Raises:
        UserError: the card has no statistics.
    """
    ActionScaling.from_card(card)
    folder.mkdir(parents=True, exist_ok=True)
    described = DenoiserDescription(denoiser=network.config, noise=noise)
    (folder / DESCRIPTION).write_text(described.model_dump_json(indent=1) + "\n", encoding="utf-8")
    weights = {
        name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    card.save(folder)
    write_description(folder, DIFFUSION)


def load_denoiser(folder: Path, device: torch.device | str = "cpu") -> tuple[Denoiser, DenoiserFolder]:
    """The network in evaluation mode, float32, and what the folder says of it.

    Raises:
        UserError: the folder cannot be read, or its files do not fit together.
    """
    described = check_denoiser_files(folder)
    network = Denoiser(described.denoiser)
    network.load_state_dict(load_weights(folder))
    return network.to(device).eval(), described


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The folder's weights by name, float32.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / WEIGHTS
    check_weights_file(path)
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise_if_host(error, where=str(path))
        raise UserError(f"cannot be read as weights: {first_line(error)}", where=str(path)) from error


def check_denoiser_files(folder: Path) -> DenoiserFolder:
    """That the folder holds a whole model, without reading its weights.

    Raises:
        UserError: a file is missing or damaged, or they do not fit together.
    """
    described = read_denoiser(folder)
    check_weights_file(folder / WEIGHTS)
    with torch.device("meta"):
        wanted = Denoiser(described.denoiser).state_dict()
    _check_shapes(folder / WEIGHTS, {name: tuple(value.shape) for name, value in wanted.items()})
    return described


def read_denoiser(folder: Path) -> DenoiserFolder:
    """What the folder says of its model; reads no weights.

    Raises:
        UserError: a description is missing or damaged, or they do not fit together.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        lacks = folder_fault(folder, f"holds no {DESCRIPTION}")
        raise UserError(lacks, where=str(folder), remedy="give the folder of a diffusion world model")
    try:
        described = validated(read_object(path, _WHAT), DenoiserDescription, _WHAT, where=str(path))
    except ReportedError as error:
        if error.where == str(path):
            raise
        raise UserError(f"cannot be read as {_WHAT} ({error.what})", where=str(path)) from None
    card = ActionCard.load(folder)
    if card is None:
        raise UserError(f"holds no {ACTION_CARD}", where=str(folder), remedy="copy the folder again, whole")
    scaling = ActionScaling.from_card(card, str(folder / ACTION_CARD))
    if scaling.dims != described.denoiser.action_dims:
        raise UserError(
            f"the action card has {scaling.dims} dimensions, {DESCRIPTION} {described.denoiser.action_dims}",
            where=str(folder),
            remedy="both must come from one pre-training",
        )
    return DenoiserFolder(described.denoiser, described.noise, card, scaling)


def _check_shapes(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
    with safe_open(path, framework="numpy") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"weight '{name}' is {_shape(found, name)}, {DESCRIPTION} wants {_shape(wanted, name)}",
                where=str(path),
                remedy="both must come from one pre-training",
            )


def _shape(shapes: Mapping[str, Any], name: str) -> str:
    return json.dumps(list(shapes[name])) if name in shapes else "absent"
