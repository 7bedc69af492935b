"""Diffusion rollouts and states to pixels: the frames are in them, so no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.rollout import DiffusionPayload, diffusion_payload
from roboalign_ray.world_model.diffusion.state import DiffusionState
from roboalign_ray.world_model.protocol import ModelCard, Rollout

POLICIES = frozenset({"none", "swr", "token_window", "reference_recent"})  # "sinks" keeps tokens


@dataclass(frozen=True)
class DiffusionDecoder:
    """Implements the `Decoder` protocol.

    Args:
        card: of the world model.
    """

    card: ModelCard

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, V, H, W, 3].

        Raises:
            UserError: it is no diffusion rollout.
            ValueError: its frames are damaged, or those of another model.
        """
        payload, card = diffusion_payload(rollout), self.card
        if payload.packed.shape[2:] != (card.views, card.height, card.width, 3):
            raise ValueError(
                f"{rollout.prompt_id}: frames of shape {payload.packed.shape} are another model's"
            )
        try:
            return payload.frames()
        except ValueError as error:
            raise ValueError(f"{rollout.prompt_id}: {error}") from None

    def frames(self, state: DiffusionState, since: int) -> np.ndarray:
        """Generated frames from number `since` on: uint8 [rows, n, V, H, W, 3].

        Raises:
            UserError: there is no such frame.
        """
        if not 0 <= since < state.generated:
            raise UserError(f"no frame {since} among {state.generated} generated ones", where="frames")
        return state.frames(np.arange(state.rows), state.given + since)


def diffusion_card(folder: DenoiserFolder) -> ModelCard:
    """The card of the diffusion world model in a folder."""
    sizes = folder.denoiser
    return ModelCard(
        kind=DiffusionPayload.kind,
        views=sizes.views,
        height=sizes.height,
        width=sizes.width,
        action_dims=sizes.action_dims,
        actions=folder.card,
        clip_frames=sizes.clip_frames,
        policies=POLICIES,
    )
