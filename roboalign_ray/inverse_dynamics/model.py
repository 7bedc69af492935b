"""An inverse dynamics model that can be asked: its folder, and the actions of whole clips.

inverse_dynamics/
  inverse_dynamics.json   format, network, views
  model.safetensors       weights by name
  action_card.json        what the actions mean; its mean and deviation scale them
  measurement.json        R², errors and trials on held-out episodes (`measurement`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from roboalign_ray.config.inverse_dynamics import InverseNetworkConfig
from roboalign_ray.episodes.action_card import ACTION_CARD, ActionCard
from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.foundation.failures import ReportedError, UserError, first_line, raise_if_host
from roboalign_ray.foundation.storage.readers import read_object, validated
from roboalign_ray.foundation.weight_sync.files import check_weights_file
from roboalign_ray.inverse_dynamics.network import InverseDynamics
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
from roboalign_ray.inverse_dynamics.training import to_network

DESCRIPTION = "inverse_dynamics.json"
WEIGHTS = "model.safetensors"
_WHAT = "description of an inverse dynamics model"
_BATCH = 64  # actions read at once


class InverseDescription(BaseModel):
    """What `inverse_dynamics.json` holds.

    Attributes:
        format: of the folder.
        network: sizes.
        views: names of the camera views; ("",) is the first view of every clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    network: InverseNetworkConfig
    views: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] = ("",)


@dataclass(frozen=True)
class ReadActions:
    """Actions read from clips.

    Attributes:
        actions: float64 [B, T, A] in the units of the card; actions[:, t] leads from frame t to frame t + 1.
        std: float64 [B, T, A], predicted standard deviation in the same units.
    """

    actions: np.ndarray
    std: np.ndarray


class InverseModel:
    """A trained network with the meaning of its views and actions.

    Args:
        network: the network.
        views: names of its views.
        card: what its actions mean.
        device: where it runs.

    Raises:
        UserError: the card has no statistics, or does not fit the network.
    """

    def __init__(
        self,
        network: InverseDynamics,
        views: Sequence[str],
        card: ActionCard,
        *,
        device: torch.device | str = "cpu",
        where: str = "inverse dynamics model",
    ) -> None:
        self.normaliser = ActionNormaliser.from_card(card, where)
        for what, ours, theirs in (
            ("action dimensions", card.dims, network.action_dims),
            ("views", len(views), network.views),
        ):
            if ours != theirs:
                raise UserError(f"{ours} {what}, the network has {theirs}", where=where)
        self.network, self.views, self.card = network.to(device).eval(), tuple(views), card
        self.device, self.where = device, where

    def choose_views(self, views: Sequence[str]) -> list[int]:
        """Positions of the model's views among the views of a clip.

        Args:
            views: names of the clip's views; empty if unknown.

        Raises:
            UserError: a view is missing.
        """
        if self.views == ("",):
            return [0]
        if not views and len(self.views) == 1:
            return [0]
        missing = [view for view in self.views if view not in views]
        if missing:
            there = ", ".join(views) or "they have no names"
            raise UserError(
                f"the clip has no view '{missing[0]}' (views: {there})",
                where=self.where,
                remedy="train the inverse dynamics model on the views that the world model has",
            )
        return [list(views).index(view) for view in self.views]

    @torch.no_grad()
    def read(self, clips: np.ndarray, views: Sequence[str] | None = None) -> ReadActions:
        """The actions between the frames of clips.

        Args:
            clips: uint8 [B, T + 1, V, H, W, 3] of any size; T at least 1.
            views: names of the V views, empty if unknown; None: the model's own in their order.

        Raises:
            UserError: a view is missing, or the clips are no such frames.
        """
        if clips.ndim != 6 or clips.dtype != np.uint8 or clips.shape[1] < 2:
            raise UserError(
                f"clips are {clips.dtype} {clips.shape}, not uint8 [B, at least 2, V, H, W, 3]",
                where=self.where,
            )
        shown = self._sized(clips if views is None else clips[:, :, self.choose_views(views)])
        rows, frames = shown.shape[:2]
        places = np.arange(-self.network.config.reach, self.network.config.reach + 1)
        order = (np.arange(frames - 1)[:, None] + places).clip(0, frames - 1)  # [T, 2k + 1]
        found = []
        for row, t in _batches(rows, frames - 1):
            picked = shown[row[:, None], order[t]]
            mean, log_scale = self.network(to_network(picked, self.device))
            found.append(torch.stack([mean, log_scale]).double().cpu().numpy())
        mean, log_scale = np.concatenate(found, axis=1).reshape(2, rows, frames - 1, -1)
        std = np.sqrt(2) * np.exp(log_scale) * self.normaliser.std * self.normaliser.varies
        return ReadActions(self.normaliser.to_physical(mean), std)

    def uncertainty(self, read: ReadActions) -> np.ndarray:
        """Float64 [B, T]: predicted standard deviation in those of the action, mean over dimensions that vary."""
        varies = self.normaliser.varies
        return (read.std / self.normaliser.std) @ varies.astype(np.float64) / max(1, varies.sum())

    def _sized(self, clips: np.ndarray) -> np.ndarray:
        """Clips at the network's size."""
        if clips.shape[2] != len(self.views):
            raise UserError(
                f"clips of {clips.shape[2]} views, the model has {len(self.views)}", where=self.where
            )
        config = self.network.config
        flat = resize_frames(clips.reshape(-1, *clips.shape[3:]), config.height, config.width)
        return flat.reshape(*clips.shape[:3], *flat.shape[1:])

    def save(self, folder: Path) -> None:
        """Write a folder that `load_inverse_model` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        described = InverseDescription(network=self.network.config, views=self.views)
        (folder / DESCRIPTION).write_text(described.model_dump_json(indent=1) + "\n", encoding="utf-8")
        weights = {
            name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()
        }
        save_file(weights, folder / WEIGHTS)
        self.card.save(folder)


def load_inverse_model(folder: str | Path, device: torch.device | str = "cpu") -> InverseModel:
    """The model of a folder.

    Raises:
        UserError: a file is missing or damaged, or they do not fit together.
    """
    folder = Path(folder)
    described, card = read_inverse_description(folder)
    network = InverseDynamics(described.network, len(described.views), card.dims)
    path = folder / WEIGHTS
    check_weights_file(path)
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise_if_host(error, where=str(path))
        raise UserError(
            f"cannot be read as weights: {first_line(error)}",
            where=str(path),
            remedy="the files must come from one training",
        ) from error
    return InverseModel(network, described.views, card, device=device, where=str(folder))


def read_inverse_description(folder: Path) -> tuple[InverseDescription, ActionCard]:
    """What a folder says of its model; reads no weights.

    Raises:
        UserError: a description is missing or damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(
            f"holds no {DESCRIPTION}",
            where=str(folder),
            remedy="train a model with: roboalign pretrain PROFILE --stage inverse_dynamics",
        )
    try:
        described = validated(read_object(path, _WHAT), InverseDescription, _WHAT, where=str(path))
    except ReportedError as error:
        if error.where == str(path):
            raise
        raise UserError(f"cannot be read as {_WHAT} ({error.what})", where=str(path)) from None
    card = ActionCard.load(folder)
    if card is None:
        raise UserError(f"holds no {ACTION_CARD}", where=str(folder), remedy="copy the folder again, whole")
    return described, card


def _batches(rows: int, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clip and step of every action, clip by clip, in batches."""
    row, t = (part.ravel() for part in np.indices((rows, steps)))
    return [(row[n : n + _BATCH], t[n : n + _BATCH]) for n in range(0, len(row), _BATCH)]
